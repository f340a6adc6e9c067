"""YAML text to plain data, with the line of every value, variables filled in and duplicate keys refused.

Neighbours: load.py (layers and validates what this reads). Only YAML's safe scalars, lists and mappings exist here:
no tags, no merge keys, and an alias bomb meets the bound on values before it meets the memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from config.errors import Place, Problem

MAX_VALUES = 50_000
MAX_DEPTH = 16

_VARIABLE = re.compile(r"\$(\$)?\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_SCALAR_TAGS = frozenset(f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null"))


@dataclass(slots=True)
class Document:
    """What a file says: `data` as plain Python values, `lines` by place (from 1), `problems` met on the way."""

    data: dict[str, Any] = field(default_factory=dict)
    lines: dict[Place, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def parse(text: str, environ: Mapping[str, str]) -> Document:
    """Reads one YAML document. Never raises: what is wrong is in `problems`, and a value that has one reads as None."""
    document = Document()
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if isinstance(root, yaml.MappingNode):
            document.data = _Reader(loader, environ, document).mapping(root, ())
        elif root is not None:
            document.problems.append(Problem((), "the top level should be a mapping (key: value)", 1))
    except yaml.YAMLError as error:
        hint = "; inside { } quote a value that holds ${...}" if "${" in text else ""
        document.problems.append(_yaml_problem(error, hint))
    except RecursionError:
        document.problems.append(Problem((), "nested too deeply"))
    return document


def scalar(text: str) -> Any:
    """One value as it would read unquoted in a file: `8484` is a number, `auto` is text. Raises nothing."""
    document = parse(f"value: {text}", {})
    value = document.data.get("value")
    return text if document.problems or isinstance(value, dict | list) else value


def _yaml_problem(error: yaml.YAMLError, hint: str) -> Problem:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        what = " ".join(part for part in (error.context, error.problem) if part)
        return Problem((), f"not valid YAML: {what}{hint}", error.problem_mark.line + 1)
    return Problem((), f"not valid YAML: {str(error).splitlines()[0]}")


class _Reader:
    def __init__(self, loader: yaml.SafeLoader, environ: Mapping[str, str], document: Document) -> None:
        self._loader = loader
        self._environ = environ
        self._document = document
        self._values = 0

    def mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            here = (*place, str(key))
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                self._problem(place, "keys should be plain words", key_node)
            elif key in found:
                self._problem(here, "is given twice", key_node)
            else:
                found[key] = self._value(value_node, here)
        return found

    def _value(self, node: yaml.Node, place: Place) -> Any:
        self._values += 1
        self._document.lines[place] = node.start_mark.line + 1
        if self._values > MAX_VALUES:
            raise yaml.MarkedYAMLError(problem=f"more than {MAX_VALUES} values", problem_mark=node.start_mark)
        if len(place) > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="nested too deeply", problem_mark=node.start_mark)
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*place, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, place)

    def _scalar(self, node: yaml.Node, place: Place) -> Any:
        tag, text = node.tag, node.value
        filled = self._fill(text, place, node)
        if filled is None:
            return None
        if filled != text and isinstance(node, yaml.ScalarNode) and node.style is None:
            # A variable in an unquoted value reads as if its content stood there: ${PORT} may be a number.
            tag = self._loader.resolve(yaml.ScalarNode, filled, (True, False))  # type: ignore[no-untyped-call]
        if tag == "tag:yaml.org,2002:timestamp":
            return filled
        if tag not in _SCALAR_TAGS:
            self._problem(place, f"the YAML tag {tag.rpartition(':')[2]!r} is not supported", node)
            return None
        try:
            return self._loader.construct_object(yaml.ScalarNode(tag, filled))
        except ValueError:
            self._problem(place, "is not a valid value", node)
            return None

    def _fill(self, text: str, place: Place, node: yaml.Node) -> str | None:
        if "${" not in text:
            return text
        missing: list[str] = []

        def value_of(match: re.Match[str]) -> str:
            escaped, name, default = match.groups()
            if escaped:
                return match[0][1:]
            value = self._environ.get(name) or default
            if value is None:
                missing.append(name)
            return value or ""

        filled = _VARIABLE.sub(value_of, text)
        for name in missing:
            self._problem(place, f"the environment variable {name} is not set (${{{name}:-default}} gives one)", node)
        return None if missing else filled

    def _problem(self, place: Place, message: str, node: yaml.Node) -> None:
        self._document.problems.append(Problem(place, message, node.start_mark.line + 1))
