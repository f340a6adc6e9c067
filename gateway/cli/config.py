"""`upshift config`: look at settings without serving anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gateway.cli import models

if TYPE_CHECKING:
    from collections.abc import Sequence

    from config.load import Loaded, Override

_FILE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def config() -> None:
    """Check, show and describe the settings.

    \b
    upshift config check upshift.yaml
    upshift config show --config upshift.yaml
    upshift config schema > upshift.schema.json
    """


@config.command()
@click.argument("file", type=_FILE, required=False)
def check(file: Path | None) -> None:
    """Report everything wrong with FILE (default: UPSHIFT_CONFIG), the files it names, and whether its models exist.

    \b
    upshift config check upshift.yaml
    """
    from config.errors import ConfigError  # noqa: PLC0415 - help must not pay for pydantic
    from gateway.cli.settings import usable  # noqa: PLC0415

    try:
        loaded = usable(file)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    names = ", ".join(model.name for model in loaded.settings.models)
    click.echo(f"{loaded.file or 'The built-in settings'}: fine. Models: {names}")


@config.command()
@click.option("--config", "file", type=_FILE, help="YAML file with the settings. [default: UPSHIFT_CONFIG]")
@click.option("--profile", type=click.Choice(models.PROFILES), help="As of `serve`.")
def show(file: Path | None, profile: str | None) -> None:
    """Print the settings in effect as YAML, each with where it came from.

    \b
    upshift config show
    upshift config show --config upshift.yaml --profile prod
    """
    from config.load import Override  # noqa: PLC0415 - help must not pay for pydantic
    from config.show import show as as_yaml  # noqa: PLC0415

    overrides = [] if profile is None else [Override(("profile",), profile, "--profile")]
    click.echo(as_yaml(_load(file, overrides)), nl=False)


@config.command()
def schema() -> None:
    """Print the JSON Schema of the settings, for editors.

    \b
    upshift config schema > upshift.schema.json
    """
    from config.schema import Settings  # noqa: PLC0415

    click.echo(json.dumps(Settings.model_json_schema(), indent=2))


def _load(file: Path | None, overrides: Sequence[Override] = ()) -> Loaded:
    from config.errors import ConfigError  # noqa: PLC0415 - help must not pay for pydantic
    from config.load import load  # noqa: PLC0415

    try:
        return load(file, overrides=overrides)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
