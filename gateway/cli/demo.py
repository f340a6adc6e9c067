"""`upshift demo`: the bundled model as a file."""

from __future__ import annotations

from pathlib import Path

import click

from gateway.cli import models


@click.group()
def demo() -> None:
    """The bundled demo model as a file, for other tools.

    \b
    upshift demo path
    upshift demo export ./demo-hf      the same model as safetensors, for vLLM and transformers
    """


@demo.command()
def path() -> None:
    """Print where the demo model's GGUF file is.

    \b
    upshift demo path
    llama-server -m "$(upshift demo path)"
    """
    from backends.gguf.demo import DEMO_MODEL_PATH  # noqa: PLC0415

    models.check_source(models.DEMO)
    click.echo(str(DEMO_MODEL_PATH))


@demo.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
def export(directory: Path) -> None:
    """Write the demo model to DIRECTORY in the Hugging Face layout (safetensors, tokenizer, config).

    \b
    upshift demo export ./demo-hf
    """
    models.check_source(models.DEMO)
    try:
        from backends.gguf.demo.export import export as write  # noqa: PLC0415 - needs numpy and safetensors
    except ImportError as error:
        raise click.ClickException(
            f"exporting needs more libraries ({error}); install them with: pip install 'upshift[gguf]'"
        ) from error
    try:
        write(directory)
    except OSError as error:
        raise click.ClickException(f"{directory} cannot be written: {error.strerror or error}") from error
    click.echo(f"The demo model is in {directory}")
