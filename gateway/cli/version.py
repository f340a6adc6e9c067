"""`upshift version`."""

from __future__ import annotations

from importlib.metadata import version as distribution_version

import click


@click.command()
def version() -> None:
    """Print the version.

    \b
    upshift version
    """
    click.echo(distribution_version("upshift"))
