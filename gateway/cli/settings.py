"""Settings with everything checked that can be before anything is started. Neighbours: serve.py, config.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from backends.access import check_access
from backends.selection import select
from config.errors import ConfigError, Problem
from config.load import Loaded, Override, load
from config.schema import Settings
from gateway.auth import check_exposure, check_keys
from gateway.cli import models


def usable(file: Path | None, overrides: Sequence[Override] = ()) -> Loaded:
    """`config.load.load` without what the profile leaves out, once the files that it names and who could reach the
    listener have been looked at. Raises ConfigError."""
    loaded = load(file, overrides=overrides)
    source = str(loaded.file or "settings")
    settings = select(loaded.settings, source).settings
    check_keys(settings)
    check_access(settings)
    problems = tuple(_problems(settings))
    if problems:
        raise ConfigError(source, problems)
    return replace(loaded, settings=settings)


def _problems(settings: Settings) -> Iterator[Problem]:
    for index, model in enumerate(settings.models):
        problem = models.problem_with(model.gguf.source if model.gguf else None)
        if problem:
            yield Problem(("models", index, "gguf", "source"), problem)
    exposed = check_exposure(settings)
    if exposed is not None:
        yield Problem(("auth",), exposed)
