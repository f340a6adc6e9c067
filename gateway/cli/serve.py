"""`upshift serve`: the gateway."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.cli import models

if TYPE_CHECKING:
    from config.load import Loaded, Override


@click.command()
@click.option("--config", "file", type=click.Path(path_type=Path, dir_okay=False), help="YAML file with the settings.")
@click.option("--model", "chosen", metavar="MODEL", multiple=True, help=f"{models.HELP}; may be repeated.")
@click.option("--profile", type=click.Choice(models.PROFILES), help="What serves the models. [default: auto]")
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 lets the system choose. [default: 8484]"
)
@click.option("--workers", metavar="N", help="Processes that serve clients; `auto`: one per usable core. [default: 1]")
@click.option("--auth", metavar="KEYS.yaml|KEYS.db|none", help="API keys of the clients, or the word none.")
def serve(  # noqa: PLR0917 - click gives them by name
    file: Path | None,
    chosen: tuple[str, ...],
    profile: str | None,
    host: str | None,
    port: int | None,
    workers: str | None,
    auth: str | None,
) -> int:
    """Serve models under one OpenAI base URL.

    Without --config and --model it serves the bundled demo model. --model replaces the models of the file.

    \b
    upshift serve
    upshift serve --model ~/models/llama-3.2-1b-q4_k_m.gguf
    upshift serve --model llama=./llama.gguf --model demo --port 9000
    upshift serve --config upshift.yaml
    upshift serve --config upshift.yaml --profile prod
    upshift serve --host 0.0.0.0 --auth keys.yaml
    """
    from backends.hardware import detect  # noqa: PLC0415
    from config.errors import ConfigError  # noqa: PLC0415 - help must not pay for pydantic, uvicorn and FastAPI
    from gateway.bind import ListenError  # noqa: PLC0415
    from gateway.cli.settings import usable  # noqa: PLC0415
    from gateway.reload import Source  # noqa: PLC0415
    from gateway.workers.start import serve as run_gateway  # noqa: PLC0415

    overrides = _overrides(chosen, profile, host, port, workers, auth)

    # Once: what a reload finds must not depend on what the engines that run meanwhile have taken.
    machine = functools.cache(detect)

    def read() -> Loaded:
        return usable(file, overrides, machine)

    try:
        return run_gateway(Source(read, read()))
    except (ConfigError, ListenError) as error:
        raise click.ClickException(str(error)) from error


def _overrides(  # noqa: PLR0917 - the one call has the same names
    chosen: tuple[str, ...],
    profile: str | None,
    host: str | None,
    port: int | None,
    workers: str | None,
    auth: str | None,
) -> list[Override]:
    from config.document import scalar  # noqa: PLC0415
    from config.load import Override, absolute_path  # noqa: PLC0415

    found = []
    if chosen:
        pairs = [models.name_and_source(argument) for argument in chosen]
        listed = [{"name": name, "gguf": {"source": source}} for name, source in pairs]
        found.append(Override(("models",), listed, "--model"))
    if profile is not None:
        found.append(Override(("profile",), profile, "--profile"))
    if host is not None:
        found.append(Override(("server", "host"), host, "--host"))
    if port is not None:
        found.append(Override(("server", "port"), port, "--port"))
    if workers is not None:
        found.append(Override(("server", "workers"), scalar(workers), "--workers"))
    if auth is not None:
        place = "keys_store" if auth.endswith((".db", ".sqlite", ".sqlite3")) else "keys_file"
        value = auth if auth == "none" else {place: absolute_path(auth, Path.cwd())}
        found.append(Override(("auth",), value, "--auth"))
    return found
