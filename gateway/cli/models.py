"""What the commands take for MODEL, and whether the file behind it can be a model at all.

Looks at eight bytes: a wrong path is worth finding before anything is started. Neighbours: serve.py, run.py, config.py.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from config.schema import ModelSettings
    from config.vllm import VllmSettings

DEMO = "demo"
PROFILES = ("dev", "prod", "auto")
HELP = "`demo`, the path of a .gguf file, or NAME=PATH"

_MAGIC = b"GGUF"
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._:/@+-]+")


def name_and_source(argument: str) -> tuple[str, str]:
    """(name for clients, `demo` or absolute path) of a MODEL argument. A bare path is named after its file."""
    from config.load import source_path  # noqa: PLC0415 - help must not pay for pydantic

    name, equals, source = argument.partition("=")
    if not equals or Path(argument).exists():
        name, source = "", argument
    if not source:
        raise click.UsageError(f"{argument!r} has no path after the equals sign.")
    if equals and not name and not Path(argument).exists():
        raise click.UsageError(f"{argument!r} has no name before the equals sign.")
    source = source_path(source, Path.cwd())
    return name or _name_of(source), source


def _name_of(source: str) -> str:
    stem = Path(source).name.removesuffix(".gguf")
    return _NOT_IN_NAMES.sub("-", stem).strip("-._:/@+")[:128] or "model"


def as_settings(argument: str, context_tokens: int | None = None) -> ModelSettings:
    """A MODEL argument with everything else left to the machine. Raises ClickException."""
    from pydantic import ValidationError  # noqa: PLC0415

    from config.schema import GgufSettings, ModelSettings  # noqa: PLC0415

    name, source = name_and_source(argument)
    try:
        return ModelSettings(name=name, context_tokens=context_tokens, gguf=GgufSettings(source=source))
    except ValidationError as error:
        raise click.UsageError(f"{argument!r}: {error.errors()[0]['msg']}.") from error


def check_source(source: str | None) -> None:
    """Raises ClickException naming what is wrong with a model's file, and what to do about it. None is a model that an
    endpoint elsewhere serves: it has no file here."""
    problem = problem_with(source)
    if problem:
        raise click.ClickException(problem)


def problem_with(source: str | None) -> str:
    """Why `source` cannot be served, in one line; empty where nothing speaks against it, as with None."""
    if source is None:
        return ""
    path = _path(source)
    try:
        if path.is_fifo():
            raise OSError(errno.EINVAL, "it is a pipe")  # opening one waits for somebody to write
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
    except FileNotFoundError:
        if source == DEMO:
            return f"the demo model is missing from this installation ({path}); reinstall upshift"
        return f"there is no file {path}; give the path of a .gguf file, or `demo`"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    if magic != _MAGIC:
        return f"{path} is not a GGUF file; models in other formats have to be converted first"
    return ""


def problems_with_vllm(settings: VllmSettings) -> Iterator[tuple[str, str]]:
    """(setting, why it cannot be) of the files that a vLLM which is to be launched needs."""
    folder = Path(settings.source or "")
    if folder.is_absolute() and not folder.is_dir():
        what = f"{folder} is a file, and vLLM loads folders" if folder.exists() else f"there is no folder {folder}"
        yield "source", f"{what}; give a folder in the Hugging Face layout, an id on its hub, or `demo`"
    elif folder.is_absolute() and not (folder / "config.json").is_file():
        yield "source", f"{folder} has no config.json: it is no model in the Hugging Face layout"
    if settings.python is not None and not os.access(settings.python, os.X_OK):
        yield "python", f"there is no interpreter {settings.python}"
    if settings.command is not None and shutil.which(settings.command[0]) is None:
        yield "command", f"there is no command {settings.command[0]}"


def _path(source: str) -> Path:
    from backends.gguf.demo import DEMO_MODEL_PATH  # noqa: PLC0415

    return DEMO_MODEL_PATH if source == DEMO else Path(source)
