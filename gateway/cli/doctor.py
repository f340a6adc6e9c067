"""`upshift doctor`: what this machine is, what serves each model on it and why, what is missing and what would help."""

from __future__ import annotations

import dataclasses
import json
import platform
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gateway.cli import models

if TYPE_CHECKING:
    from backends.fit import Fit
    from backends.gpu import Gpus
    from backends.hardware import Hardware
    from backends.selection import Surroundings
    from config.schema import Settings
    from gateway.cli.diagnosis import Diagnosis

_PROBE_SECONDS = 60
_GIB = 1024**3
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.option("--config", "file", type=_FILE, help="Look at the models of this file. [default: UPSHIFT_CONFIG]")
@click.option("--profile", type=click.Choice(models.PROFILES), help="As if it were chosen. [default: as configured]")
@click.option("--hardware", "machine", type=_FILE, help="As if on the machine that this file describes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(file: Path | None, profile: str | None, machine: Path | None, as_json: bool) -> int:
    """Look at this machine and say what serves each model here, why, what does not fit and what would change that.

    Exits with 1 if something is missing or does not fit. A file for --hardware is what `upshift doctor --json` prints
    on that machine.

    \b
    upshift doctor
    upshift doctor --config upshift.yaml --profile prod
    upshift doctor --json > gpu-box.json
    upshift doctor --config upshift.yaml --hardware gpu-box.json
    """
    hardware = _hardware(machine)
    # An engine that is missing here says nothing of another machine.
    engines = {} if machine is not None else {"gguf": _gguf_engine(), "vllm": _vllm_engine()}
    settings, problem = _settings(file, profile)
    diagnosis = _diagnose(settings, hardware, elsewhere=machine is not None) if settings is not None else None
    problems = [problem] if problem else []
    if diagnosis is not None:
        problems += diagnosis.problems
    if settings is not None and machine is None and settings.profile != "dev":
        problems += _missing_files(settings)
    if settings is not None and any(model.gguf is not None and model.gguf.source for model in settings.models):
        problems += [text for text in (engines.get("gguf", ("", "")))[1:] if text]
    warnings = [] if machine is not None else _warnings()
    if as_json:
        report = _report(hardware, engines, diagnosis, problems) | {"warnings": warnings}
        click.echo(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        for line in (*_machine_lines(hardware), *_engine_lines(engines), *_model_lines(diagnosis)):
            click.echo(line)
        for text in warnings:
            click.echo(f"warning   {text}")
        for text in problems:
            click.echo(f"problem   {text}")
    return 1 if problems else 0


def _hardware(file: Path | None) -> Hardware:
    from backends.hardware import detect, from_json  # noqa: PLC0415 - help must not pay for pydantic

    if file is None:
        return detect()
    try:
        text = file.read_text(encoding="utf-8")
        report = json.loads(text)
        return from_json(json.dumps(report["hardware"]) if "hardware" in report else text)
    except OSError as error:
        raise click.ClickException(f"{file} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise click.ClickException(f"{file} describes no machine: {error}") from error


def _settings(file: Path | None, profile: str | None) -> tuple[Settings | None, str]:
    """The settings, or what is wrong with them."""
    from config.errors import ConfigError  # noqa: PLC0415
    from config.load import Override, load  # noqa: PLC0415

    try:
        overrides = [Override(("profile",), profile, "--profile")] if profile is not None else []
        return load(file, overrides=overrides).settings, ""
    except ConfigError as error:
        return None, str(error)


def _diagnose(settings: Settings, hardware: Hardware, *, elsewhere: bool) -> Diagnosis:
    from backends.survey import full_survey  # noqa: PLC0415
    from gateway.cli.diagnosis import diagnose  # noqa: PLC0415

    around: Surroundings = full_survey(settings, hardware)
    return diagnose(settings, dataclasses.replace(around, vllm_installed=True) if elsewhere else around)


def _missing_files(settings: Settings) -> Iterator[str]:
    """What keeps `serve` from launching a vLLM here."""
    for model in settings.models:
        if model.vllm is not None and model.vllm.source is not None:
            for setting, text in models.problems_with_vllm(model.vllm):
                yield f"{model.name}: vllm.{setting}: {text}"


def _gguf_engine() -> tuple[str, str]:
    """(what is there, what is wrong with it)."""
    try:
        engine = f"llama-cpp-python {version('llama-cpp-python')}"
    except PackageNotFoundError:
        return "not installed", "the GGUF engine is not installed: pip install 'upshift[gguf]'"
    # In a process of its own: a library built for another CPU ends the process that loads it.
    probe = subprocess.run(
        [sys.executable, "-c", "import backends.gguf.llama"],
        capture_output=True,
        text=True,
        timeout=_PROBE_SECONDS,
        check=False,
    )
    if probe.returncode == 0:
        return f"{engine} loads", ""
    lines = probe.stderr.strip().splitlines()
    cause = lines[-1] if lines else f"it ended with signal {-probe.returncode}"
    return f"{engine} does not load", f"{engine} does not load: {cause}"


def _vllm_engine() -> tuple[str, str]:
    """As `_gguf_engine`. That it is missing is a problem of the models that want it."""
    from backends.vllm.environment import default_folder, installed  # noqa: PLC0415

    found = installed(default_folder())
    return (f"vLLM {found.version} for {found.device}" if found else "not installed", "")


def _warnings() -> list[str]:
    """What is known to be wrong with the vLLM that is installed here. Of one that runs elsewhere, or in an environment
    of the user's, `serve` tells it once it answers."""
    from backends.advisories import Release, warning  # noqa: PLC0415
    from backends.vllm.environment import default_folder, installed  # noqa: PLC0415

    found = installed(default_folder())
    told = warning(Release("vLLM", found.version)) if found is not None else ""
    return [f"{told}; `upshift engine install vllm` brings another"] if told else []


def _report(
    hardware: Hardware, engines: dict[str, tuple[str, str]], diagnosis: Diagnosis | None, problems: list[str]
) -> dict[str, Any]:
    report: dict[str, Any] = {"upshift": version("upshift"), "python": platform.python_version()}
    report["hardware"] = dataclasses.asdict(hardware)
    report["engines"] = {kind: found for kind, (found, _) in engines.items()}
    return report | (diagnosis.as_json() if diagnosis is not None else {}) | {"problems": problems}


def _machine_lines(found: Hardware) -> Iterator[str]:
    yield f"upshift   {version('upshift')}, Python {platform.python_version()}"
    sets = ", ".join(found.instruction_sets) or "unknown"
    name = f"{found.cpu_name}: " if found.cpu_name else ""
    yield f"machine   {found.system} on {found.architecture}"
    yield f"CPU       {name}{found.physical_cores} physical cores, {found.usable_cores} usable; {sets}"
    total, available = found.total_ram_bytes / _GIB, found.available_ram_bytes / _GIB
    yield f"memory    {total:.1f} GiB, {available:.1f} GiB available"
    yield from _gpu_lines(found.gpus)


def _gpu_lines(found: Gpus) -> Iterator[str]:
    for gpu in found.devices:
        memory = f"{gpu.free_bytes / _GIB:.1f} of {gpu.total_bytes / _GIB:.1f} GiB free"
        yield f"GPU       {gpu.name}: {memory if gpu.total_bytes else 'shares the memory'}, {gpu.capability}"
    if found.devices:
        versions = ", ".join(text for text in (found.driver, found.runtime) if text)
        yield f"driver    {versions or 'unknown'}"
    elif not found.problem:
        yield "GPU       none"
    if found.problem:
        yield f"GPU       {found.problem}"


def _engine_lines(engines: dict[str, tuple[str, str]]) -> Iterator[str]:
    for kind, (found, _) in engines.items():
        yield f"engine    {kind}: {found}"


def _model_lines(diagnosis: Diagnosis | None) -> Iterator[str]:
    if diagnosis is None:
        return
    yield f"profile   {diagnosis.profile}"
    for model, choices in diagnosis.choices.items():
        yield f"model     {model}"
        for choice in choices:
            state = "served" if choice.served else "not served"
            yield f"          {choice.kind:<5} {choice.place}: {state}, {choice.reason}"
            if choice.fit is not None:
                yield f"                {_fit_line(choice.fit)}"
    for note in diagnosis.notes:
        yield f"note      {note}"


def _fit_line(fit: Fit) -> str:
    from backends.fit import gib  # noqa: PLC0415

    needs = fit.needs
    where = "of memory" if not fit.gpus else "on the GPU" if fit.gpus == 1 else f"on each of {fit.gpus} GPUs"
    parts = f"weights {gib(needs.weight_bytes)}, KV cache {gib(needs.kv_bytes)}"
    parts += f", scratch {gib(needs.scratch_bytes)}, process {gib(needs.process_bytes)}"
    room = f"room for {fit.parallel} × {fit.context_tokens:,} tokens" if fit.fits else "does not fit"
    return f"{gib(needs.total_bytes)} of {gib(fit.available_bytes)} {where} ({parts}); {room}"
