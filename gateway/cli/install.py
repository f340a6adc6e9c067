"""`upshift engine install vllm`: the environment that vLLM is launched from."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("engine", type=click.Choice(["vllm"]))
@click.option(
    "--device",
    type=click.Choice(["auto", "cuda", "rocm", "cpu"]),
    default="auto",
    show_default=True,
    help="Which of vLLM's builds; auto goes by the driver of this machine.",
)
@click.option(
    "--path",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the environment is made. [default: ~/.cache/upshift/vllm]",
)
def install(engine: str, device: str, path: Path | None) -> None:  # noqa: ARG001 - there is one engine to install
    """Make an environment with vLLM in it, apart from upshift's own: the build that fits this machine.

    Takes minutes and gigabytes. Cut short, it goes on where it was when it is run again; when nothing is missing it
    does nothing.

    \b
    upshift engine install vllm
    upshift engine install vllm --path /srv/vllm      then: vllm: {source: …, python: /srv/vllm/bin/python}
    """
    from backends.vllm.environment import default_folder, interpreter  # noqa: PLC0415 - help must not pay for it
    from backends.vllm.install import BUILDS, fitting_device, install  # noqa: PLC0415
    from backends.vllm.pip import InstallFailed  # noqa: PLC0415

    folder = default_folder() if path is None else path.absolute()
    build = BUILDS[fitting_device() if device == "auto" else device]
    try:
        found = install(folder, build, lambda text: click.echo(f"vllm: {text}", err=True))
    except InstallFailed as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"vLLM {found.version} for {found.device} is in {folder}")
    if path is not None:
        click.echo(f"Name it in the settings of a model: vllm: {{python: {interpreter(folder)}}}")
