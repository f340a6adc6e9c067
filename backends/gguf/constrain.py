"""JSON Schemas and tool calls as grammars in llama.cpp's notation (GBNF), which limit what a model can write. Pure.

Objects have their properties in the schema's order, as models are trained to write them. What a schema says beyond
structure (pattern, format, ranges) is not enforced: `json_grammar` refuses such a schema, `tool_grammar`, which is only
to help, lets it pass. Neighbours: sampler.py (draws within a grammar), toolcalls.py (reads the calls), protocol.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backends.gguf.toolcalls import CLOSE, OPEN

MAX_DEPTH = 24
MAX_RULES = 2000
MAX_ITEMS = 64

Schema = Mapping[str, Any]

# Enough room for the usual ways to lay out JSON, and an end to it: blank lines for ever are valid JSON as well.
_BASE = {
    "ws": r'(" " | "\n" [ \t]{0,16})?',
    "hex": "[0-9a-fA-F]",
    "char": r'[^"\\\x00-\x1f] | "\\" (["\\/bfnrt] | "u" hex hex hex hex)',
    "string": r'"\"" char* "\""',
    "integer": '"-"? ("0" | [1-9] [0-9]{0,15})',
    "number": '"-"? ("0" | [1-9] [0-9]{0,15}) ("." [0-9]{1,15})? ([eE] [-+]? [0-9]{1,3})?',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "value": "object | array | string | number | boolean | null",
    "object": '"{" ws (string ws ":" ws value (ws "," ws string ws ":" ws value)*)? ws "}"',
    "array": '"[" ws (value (ws "," ws value)*)? ws "]"',
}
_ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "$schema", "$id", "$comment", "$defs", "definitions", "deprecated"}
    | {"readOnly", "writeOnly", "strict", "name"}
)
_STRUCTURE = frozenset(
    {"type", "enum", "const", "properties", "required", "additionalProperties", "items", "minItems", "maxItems"}
    | {"anyOf", "oneOf", "allOf", "$ref"}
)


class UnsupportedSchema(Exception):
    """A schema that this engine cannot hold a model to. The message names the place and what is wrong there."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """GBNF whose rule is `root`. With `after`, it holds from the end of that text on, whenever the model writes it;
    otherwise from the first token on."""

    text: str
    after: str = ""


def json_grammar(schema: Schema | None) -> Grammar:
    """Any JSON object, or what `schema` describes. Raises UnsupportedSchema."""
    rules = _Rules({} if schema is None else schema, exact=True)
    root = "object" if schema is None else rules.of(schema, "schema", 0)
    return Grammar(rules.text(f"ws {root} ws"))


def tool_grammar(tools: Sequence[tuple[str, Schema | None]], *, forced: bool, several: bool) -> Grammar:
    """Hermes calls of `tools`, by name and parameters. `forced`: from the first token on, otherwise once the model
    opens a call. After the first one only further calls can follow, if there may be `several`."""
    rules = _Rules({})
    calls = " | ".join(rules.add(_call(rules, name, parameters)) for name, parameters in tools)
    inside = rules.add(f"ws ({calls}) ws {_literal(CLOSE)}")
    rest = f"{inside} (ws {_literal(OPEN)} {inside})*" if several else inside
    return Grammar(rules.text(f"{_literal(OPEN)} {rest}")) if forced else Grammar(rules.text(rest), OPEN)


def _call(rules: _Rules, name: str, parameters: Schema | None) -> str:
    schema = parameters or {"type": "object", "properties": {}}
    rules.root = schema
    try:
        arguments = rules.of(schema, "parameters", 0) if schema.get("type") == "object" else "object"
    except UnsupportedSchema:
        arguments = "object"
    named = f"{_json('name')} ws {_literal(':')} ws {_json(name)}"
    given = f"{_json('arguments')} ws {_literal(':')} ws {arguments}"
    comma = f"ws {_literal(',')} ws"
    return f'"{{" ws ({named} {comma} {given} | {given} {comma} {named}) ws "}}"'


class _Rules:
    """The rules of one grammar, equal ones once. `root` is the document that `$ref` points into."""

    def __init__(self, root: Schema, *, exact: bool = False) -> None:
        self.root = root
        self._exact = exact
        self._names: dict[str, str] = {}
        self._references: dict[tuple[int, str], str] = {}
        self._bodies: dict[str, str] = {}

    def add(self, body: str) -> str:
        """The name of the rule with this body. Raises UnsupportedSchema when there are too many."""
        name = self._names.get(body)
        if name is None:
            name = self._names[body] = f"r{len(self._names)}"
            self._bodies[name] = body
        if len(self._bodies) > MAX_RULES:
            raise UnsupportedSchema(f"has more than {MAX_RULES} parts")
        return name

    def text(self, root: str) -> str:
        """The whole grammar."""
        rules = {**_BASE, **self._bodies, "root": root}
        return "\n".join(f"{name} ::= {body}" for name, body in rules.items())

    def of(self, schema: Any, place: str, depth: int) -> str:
        """The name of the rule for `schema`, which stands at `place`. Raises UnsupportedSchema."""
        if depth > MAX_DEPTH:
            raise UnsupportedSchema(f"{place}: is nested more than {MAX_DEPTH} levels deep")
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, Mapping):
            raise UnsupportedSchema(f"{place}: should be an object")
        unknown = sorted(schema.keys() - _STRUCTURE - _ANNOTATIONS) if self._exact else ()
        if unknown:
            raise UnsupportedSchema(f"{place}: '{unknown[0]}' is not supported by this engine")
        if "$ref" in schema:
            return self._reference(schema["$ref"], place, depth)
        values = [schema["const"]] if "const" in schema else schema.get("enum")
        if isinstance(values, list) and values:
            return self.add(" | ".join(map(_json, values)))
        options = _options(schema, place)
        if options:
            return self.add(" | ".join(self.of(option, at, depth + 1) for at, option in options))
        return self._typed(schema.get("type", "object" if "properties" in schema else None), schema, place, depth)

    def _typed(self, kind: Any, schema: Schema, place: str, depth: int) -> str:
        if kind == "object" and isinstance(schema.get("properties"), Mapping):
            return self._object(schema, place, depth)
        if kind == "array" and {"items", "minItems", "maxItems"} & schema.keys():
            return self._array(schema, place, depth)
        if kind is None:
            return "value"
        if kind in ("string", "integer", "number", "boolean", "null", "object", "array"):
            return str(kind)
        raise UnsupportedSchema(f"{place}.type: {kind!r} is no type of JSON Schema")

    def _object(self, schema: Schema, place: str, depth: int) -> str:
        required = schema.get("required") or ()
        fields = []
        for name, inner in schema["properties"].items():
            value = self.of(inner, f"{place}.{name}", depth + 1)
            fields.append((f"{_json(str(name))} ws {_literal(':')} ws {value}", name in required))
        # From the last field back: what may follow where something stands before it, and where nothing does.
        tail = head = ""
        for field, needed in reversed(fields):
            optional = "" if needed else "?"
            alone = f"{field} {tail}".rstrip()
            head = self.add(alone if needed else f"{alone} | {head}" if head else f"({alone})?")
            tail = self.add(f"(ws {_literal(',')} ws {field}){optional} {tail}".rstrip())
        return self.add(f'"{{" ws {head} ws "}}"' if head else '"{" ws "}"')

    def _array(self, schema: Schema, place: str, depth: int) -> str:
        item = self.of(schema.get("items", True), f"{place}.items", depth + 1)
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        if not all(type(n) is int and 0 <= n <= MAX_ITEMS for n in (least, most if most is not None else 0)):
            raise UnsupportedSchema(f"{place}: minItems and maxItems should be whole numbers up to {MAX_ITEMS}")
        further = f"(ws {_literal(',')} ws {item})"
        repeated = f"{further}{{{max(least - 1, 0)},{'' if most is None else max(most - 1, 0)}}}"
        if most == 0:
            return self.add('"[" ws "]"')
        inner = f"{item} {repeated}"
        return self.add(f'"[" ws {inner if least else f"({inner})?"} ws "]"')

    def _reference(self, pointer: Any, place: str, depth: int) -> str:
        if not isinstance(pointer, str) or not pointer.startswith("#"):
            raise UnsupportedSchema(f"{place}.$ref: only references inside the schema are supported by this engine")
        key = (id(self.root), pointer)
        if key in self._references:
            return self._references[key]
        target: Any = self.root
        for step in pointer[1:].split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if not isinstance(target, Mapping) or name not in target:
                raise UnsupportedSchema(f"{place}.$ref: there is nothing at {pointer!r}")
            target = target[name]
        # Named before it is built: it may refer to itself.
        rule = self._references[key] = f"d{len(self._references)}"
        self._bodies[rule] = self.of(target, pointer, depth + 1)
        return rule


def _options(schema: Schema, place: str) -> list[tuple[str, Any]]:
    """The alternatives of `schema`, each with its place; none where it is one thing."""
    if isinstance(schema.get("type"), list):
        return [(place, {**schema, "type": kind}) for kind in schema["type"]]
    for word in ("anyOf", "oneOf", "allOf"):
        options = schema.get(word)
        if isinstance(options, list) and options:
            if word == "allOf" and len(options) > 1:
                raise UnsupportedSchema(f"{place}: allOf of more than one schema is not supported by this engine")
            return [(f"{place}.{word}[{index}]", option) for index, option in enumerate(options)]
    return []


def _json(value: Any) -> str:
    return _literal(json.dumps(value, ensure_ascii=False))


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'
