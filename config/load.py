"""Settings out of their layers: defaults < file < environment < command line.

Neighbours: schema.py (the tree), document.py (YAML), show.py (where each value came from). A configuration is used as a
whole or not at all: one ConfigError lists every problem.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from config.document import Document, parse, scalar
from config.errors import ConfigError, Place, Problem, dotted
from config.schema import DEMO_SOURCE, Settings

MAX_FILE_BYTES = 1024 * 1024

# The environment reaches the few settings that differ between places; everything else can use ${VAR} in the file.
ENVIRONMENT: Mapping[str, Place] = {"UPSHIFT_HOST": ("server", "host"), "UPSHIFT_PORT": ("server", "port")}

_MESSAGES = {
    "missing": "is missing",
    "int_parsing": "should be a whole number",
    "int_type": "should be a whole number",
    "int_from_float": "should be a whole number",
    "float_parsing": "should be a number",
    "float_type": "should be a number",
    "string_type": "should be text (quote it if it looks like a number)",
    "string_pattern_mismatch": "has characters that are not allowed here",
    "tuple_type": "should be a list",
    "model_type": "should be a mapping (key: value)",
    "finite_number": "should be a finite number",
    "too_short": "should have at least one entry",
}


@dataclass(frozen=True, slots=True)
class Override:
    """One value from outside the file. `origin` is what the user typed, such as `--port` or `UPSHIFT_PORT`."""

    place: Place
    value: Any
    origin: str


@dataclass(frozen=True, slots=True)
class Loaded:
    """Settings and, by dotted place, where the values that are no defaults came from."""

    settings: Settings
    origins: Mapping[str, str]
    file: Path | None


def load(
    file: Path | None = None, *, environ: Mapping[str, str] | None = None, overrides: Sequence[Override] = ()
) -> Loaded:
    """Reads, layers and validates. Without `file` the variable UPSHIFT_CONFIG names one; without both there is none.

    Raises ConfigError. Relative `gguf.source` paths of the file start at the file's folder.
    """
    environ = os.environ if environ is None else environ
    if file is None and environ.get("UPSHIFT_CONFIG"):
        file = Path(environ["UPSHIFT_CONFIG"])
    document = parse(_read(file), environ) if file is not None else Document()
    if file is not None:
        _anchor_sources(document.data, file.parent)
    layers = [Override(place, scalar(environ[name]), name) for name, place in ENVIRONMENT.items() if environ.get(name)]
    layers += overrides
    origins = {dotted(place): f"{file}:{line}" for place, line in document.lines.items()}
    for override in layers:
        _put(document.data, override.place, override.value)
        origins[dotted(override.place)] = override.origin
    source = str(file) if file is not None else "settings"
    settings = _validate(document, source, {override.place: override.origin for override in layers})
    return Loaded(settings, origins, file)


def _read(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(str(file), (Problem((), f"cannot be read: {error.strerror}"),)) from error
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(str(file), (Problem((), f"is larger than {MAX_FILE_BYTES} bytes"),))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(str(file), (Problem((), "is not UTF-8 text", line),)) from error


def _anchor_sources(data: dict[str, Any], folder: Path) -> None:
    models = data.get("models")
    for model in models if isinstance(models, list) else []:
        gguf = model.get("gguf") if isinstance(model, dict) else None
        if isinstance(gguf, dict) and isinstance(gguf.get("source"), str) and gguf["source"]:
            gguf["source"] = source_path(gguf["source"], folder)


def source_path(source: str, folder: Path) -> str:
    """`source` as an absolute path, `~` expanded and relative ones starting at `folder`; `demo` stays as it is."""
    if source == DEMO_SOURCE:
        return source
    return os.path.normpath(folder.absolute() / Path(os.path.expanduser(source)))


def _put(data: dict[str, Any], place: Place, value: Any) -> None:
    """Sets a value along mapping keys; a file that has something else there is left for validation to report."""
    *parents, last = map(str, place)
    for step in parents:
        inner = data.setdefault(step, {})
        if not isinstance(inner, dict):
            return
        data = inner
    data[last] = value


def _validate(document: Document, source: str, overridden: Mapping[Place, str]) -> Settings:
    problems = list(document.problems)
    broken = [problem.place for problem in problems if problem.place]
    settings = None
    try:
        settings = Settings.model_validate(document.data)
    except ValidationError as error:
        found = _problems(error.errors(include_url=False, include_input=False), document.lines)
        problems += [problem for problem in found if not any(problem.place[: len(p)] == p for p in broken)]
    if problems or settings is None:
        problems = [_with_origin(problem, overridden) for problem in problems]
        raise ConfigError(source, tuple(sorted(problems, key=lambda problem: problem.line or 0)))
    return settings


def _with_origin(problem: Problem, overridden: Mapping[Place, str]) -> Problem:
    for place, origin in overridden.items():
        if problem.place[: len(place)] == place:
            return Problem(problem.place, f"{problem.message} (from {origin})")
    return problem


def _problems(errors: Iterable[ErrorDetails], lines: Mapping[Place, int]) -> list[Problem]:
    messages: dict[Place, list[str]] = {}
    errors = list(errors)
    for error in errors:
        if error["type"] == "too_short" and any(len(other["loc"]) > len(error["loc"]) for other in errors):
            continue  # pydantic counts only the valid entries; each invalid one has been reported by itself
        # What concerns two places at once has no location of pydantic's; it brings its own.
        place, siblings = _resolve(error.get("ctx", {}).get("place", error["loc"]))
        text = _message(error, place, siblings)
        if text not in messages.setdefault(place, []):
            messages[place].append(text)
    return [Problem(place, " or ".join(texts), _line(place, lines)) for place, texts in messages.items()]


def _line(place: Place, lines: Mapping[Place, int]) -> int | None:
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place)


def _resolve(location: Place) -> tuple[Place, tuple[str, ...]]:
    """The part of a pydantic location that is a place in the file (unions append their branch), and the names that
    exist beside its last step."""
    here: Any = Settings
    siblings: tuple[str, ...] = ()
    for depth, step in enumerate(location):
        if isinstance(here, type) and issubclass(here, BaseModel):
            siblings = tuple(here.model_fields)
            known = here.model_fields.get(str(step))
            here = known.annotation if known is not None else None
        elif get_origin(here) is tuple:
            here = get_args(here)[0]
        else:
            return location[:depth], siblings
        if get_origin(here) in (Union, UnionType):
            here = None
    return location, siblings


def _message(error: ErrorDetails, place: Place, siblings: tuple[str, ...]) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(place[-1]), siblings, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(siblings)}"
        return f"unknown key; {hint}"
    if kind == "literal_error":
        return f"should be {error['ctx']['expected']}"
    return _MESSAGES.get(kind) or error["msg"].replace("Input should", "should", 1)
