"""A document becomes a tree of settings, or everything that is wrong with it, in words and places of the file.

Neighbours: load.py (the settings), document.py (YAML). The keys file of the gateway is validated here as well.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from config.document import Document
from config.errors import ConfigError, Place, Problem

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
    "dict_type": "should be a mapping (key: value)",
    "finite_number": "should be a finite number",
    "too_short": "should have at least one entry",
}

Tree = TypeVar("Tree", bound=BaseModel)


def validate(tree: type[Tree], document: Document, source: str, overridden: Mapping[Place, str] | None = None) -> Tree:
    """The document as a `tree`. `source` names it in errors; `overridden` says which places other layers have set.

    Raises ConfigError with every problem in the order of the file.
    """
    problems = list(document.problems)
    broken = [problem.place for problem in problems if problem.place]
    result = None
    try:
        result = tree.model_validate(document.data)
    except ValidationError as error:
        found = _problems(tree, error.errors(include_url=False, include_input=False), document.lines)
        problems += [problem for problem in found if not any(problem.place[: len(p)] == p for p in broken)]
    if problems or result is None:
        problems = [_with_origin(problem, overridden or {}) for problem in problems]
        raise ConfigError(source, tuple(sorted(problems, key=lambda problem: problem.line or 0)))
    return result


def _with_origin(problem: Problem, overridden: Mapping[Place, str]) -> Problem:
    for place, origin in overridden.items():
        if problem.place[: len(place)] == place:
            return Problem(problem.place, f"{problem.message} (from {origin})")
    return problem


def _problems(tree: type[BaseModel], errors: Iterable[ErrorDetails], lines: Mapping[Place, int]) -> list[Problem]:
    messages: dict[Place, list[str]] = {}
    # A default that depends on a value that is wrong itself is not worth a second word.
    errors = [error for error in errors if error["type"] != "default_factory_not_called"]
    for error in errors:
        if error["type"] == "too_short" and any(len(other["loc"]) > len(error["loc"]) for other in errors):
            continue  # pydantic counts only the valid entries; each invalid one has been reported by itself
        # What concerns two places at once has no location of pydantic's; it brings its own.
        place, siblings = _resolve(tree, error.get("ctx", {}).get("place", error["loc"]))
        text = _message(error, place, siblings)
        if text not in messages.setdefault(place, []):
            messages[place].append(text)
    return [Problem(place, " or ".join(texts), _line(place, lines)) for place, texts in messages.items()]


def _line(place: Place, lines: Mapping[Place, int]) -> int | None:
    while place and place not in lines:
        place = place[:-1]
    return lines.get(place)


def _resolve(tree: type[BaseModel], location: Place) -> tuple[Place, tuple[str, ...]]:
    """The part of a pydantic location that is a place in the file (unions put their branch's name into it), and the
    names that exist beside its last step."""
    here: Any = tree
    siblings: tuple[str, ...] = ()
    place: list[str | int] = []
    for step in location:
        options = [option for option in _options(here) if option is not NoneType]
        if len(options) == 1:
            here = options[0]  # pydantic says nothing of a branch without alternative
        branch = next((option for option in options if getattr(option, "__name__", "") == step), None)
        if branch is not None:
            here = branch
            continue
        siblings = ()
        if step == "[key]":
            break
        if isinstance(here, type) and issubclass(here, BaseModel):
            siblings = tuple(here.model_fields)
            known = here.model_fields.get(str(step))
            here = known.annotation if known is not None else None
        elif get_origin(here) in (tuple, dict):
            here = get_args(here)[0 if get_origin(here) is tuple else 1]
        else:
            break
        place.append(step)
    return tuple(place), siblings


def _options(annotation: Any) -> Iterator[Any]:
    """The branches of a union, nested ones included; nothing for other types."""
    if get_origin(annotation) in (Union, UnionType):
        for option in get_args(annotation):
            inner = get_args(option)[0] if get_origin(option) is Annotated else option
            yield from _options(inner)
            yield inner


def _message(error: ErrorDetails, place: Place, siblings: tuple[str, ...]) -> str:
    kind = error["type"]
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(place[-1]), siblings, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(siblings)}"
        return f"unknown key; {hint}"
    if kind == "literal_error":
        return f"should be {error['ctx']['expected']}"
    return _MESSAGES.get(kind) or error["msg"].replace("Input should", "should", 1)
