"""Settings with everything checked that can be before anything is started. Neighbours: serve.py, config.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click

from backends.access import check_access
from backends.hardware import Hardware, detect
from backends.selection import VLLM, Selection, select
from backends.survey import survey
from config.errors import ConfigError, Problem
from config.load import Loaded, Override, load
from config.schema import Settings
from config.tree import Profile
from gateway.auth import check_exposure, check_keys
from gateway.cli import models
from gateway.tls import CertificateRefused, server_tls


def usable(file: Path | None, overrides: Sequence[Override] = (), machine: Callable[[], Hardware] = detect) -> Loaded:
    """`config.load.load` without what the profile leaves out on `machine`, once the files that it names and who could
    reach the listener have been looked at. What the machine takes away is told. Raises ConfigError."""
    loaded = load(file, overrides=overrides)
    source = str(loaded.file or "settings")
    selection = select(loaded.settings, source, survey(loaded.settings, machine))
    for text in notes(selection, loaded.settings.profile):
        click.echo(f"upshift: {text}", err=True)
    settings = selection.settings
    check_keys(settings)
    check_access(settings)
    problems = tuple(_problems(settings))
    if problems:
        raise ConfigError(source, problems)
    return replace(loaded, settings=settings)


def notes(selection: Selection, profile: Profile) -> Iterator[str]:
    """What somebody who configured vLLM has to know of it: it is not served here, or will hardly start."""
    for model, choices in selection.choices.items():
        for choice in choices:
            if choice.kind == VLLM and not choice.served and profile != "dev":
                yield f"model {model}: vLLM ({choice.place}) is not served: {choice.reason}"
            elif choice.kind == VLLM and choice.doubt:
                yield f"model {model}: vLLM ({choice.place}): {choice.doubt}"


def _problems(settings: Settings) -> Iterator[Problem]:
    for index, model in enumerate(settings.models):
        problem = models.problem_with(model.gguf.source if model.gguf else None)
        if problem:
            yield Problem(("models", index, "gguf", "source"), problem)
        for setting, problem in models.problems_with_vllm(model.vllm) if model.vllm else ():
            yield Problem(("models", index, "vllm", setting), problem)
    exposed = check_exposure(settings)
    if exposed is not None:
        yield Problem(("auth",), exposed)
    if settings.tls is not None:
        try:
            server_tls(settings.tls)
        except CertificateRefused as error:
            yield Problem(("tls", error.setting), error.detail)
