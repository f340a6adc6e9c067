"""`upshift doctor`: what this machine has, whether the engine's libraries load, and what is missing."""

from __future__ import annotations

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.cli import models

if TYPE_CHECKING:
    from backends.gpu import Gpus

_PROBE_SECONDS = 60
_GIB = 1024**3


@click.command()
@click.option(
    "--config", "file", type=click.Path(path_type=Path, dir_okay=False), help="Look at the models of this file."
)
def doctor(file: Path | None) -> int:
    """Look at this machine and say what works here and what is missing. Exits with 1 if something is.

    \b
    upshift doctor
    upshift doctor --config upshift.yaml
    """
    click.echo(f"upshift   {version('upshift')}, Python {platform.python_version()}, {platform.platform()}")
    _show_hardware()
    # A list, so that one missing part does not hide the next.
    return 0 if all([_show_engine(), _show_models(file)]) else 1


def _show_hardware() -> None:
    from backends.hardware import detect  # noqa: PLC0415

    found = detect()
    sets = ", ".join(found.instruction_sets) or "unknown"
    name = f"{found.cpu_name}: " if found.cpu_name else ""
    click.echo(f"CPU       {name}{found.physical_cores} physical cores, {found.usable_cores} usable; {sets}")
    total, available = found.total_ram_bytes / _GIB, found.available_ram_bytes / _GIB
    click.echo(f"memory    {total:.1f} GiB, {available:.1f} GiB available")
    _show_gpus(found.gpus)


def _show_gpus(found: Gpus) -> None:
    for gpu in found.devices:
        memory = f"{gpu.free_bytes / _GIB:.1f} of {gpu.total_bytes / _GIB:.1f} GiB free"
        click.echo(f"GPU       {gpu.name}: {memory if gpu.total_bytes else 'shares the memory'}, {gpu.capability}")
    if found.devices:
        versions = ", ".join(version for version in (found.driver, found.runtime) if version)
        click.echo(f"driver    {versions or 'unknown'}")
    elif not found.problem:
        click.echo("GPU       none")
    if found.problem:
        click.echo(f"GPU       {found.problem}")


def _show_engine() -> bool:
    try:
        engine = f"llama-cpp-python {version('llama-cpp-python')}"
    except PackageNotFoundError:
        click.echo("engine    missing; install it with: pip install 'upshift[gguf]'")
        return False
    # In a process of its own: a library built for another CPU ends the process that loads it.
    probe = subprocess.run(
        [sys.executable, "-c", "import backends.gguf.llama"],
        capture_output=True,
        text=True,
        timeout=_PROBE_SECONDS,
        check=False,
    )
    if probe.returncode == 0:
        click.echo(f"engine    {engine} loads")
        return True
    lines = probe.stderr.strip().splitlines()
    cause = lines[-1] if lines else f"it ended with signal {-probe.returncode}"
    click.echo(f"engine    {engine} does not load: {cause}")
    return False


def _show_models(file: Path | None) -> bool:
    from config.errors import ConfigError  # noqa: PLC0415
    from config.load import load  # noqa: PLC0415

    try:
        settings = load(file).settings
    except ConfigError as error:
        click.echo(f"settings  {error}")
        return False
    fine = True
    for model in settings.models:
        source = model.gguf.source if model.gguf else None
        problem = models.problem_with(source)
        facts = [f"{place} found" if place == source else f"served at {place}, not asked" for place in model.places]
        click.echo(f"model     {model.name}: {problem or ', '.join(facts)}")
        fine = fine and not problem
    return fine
