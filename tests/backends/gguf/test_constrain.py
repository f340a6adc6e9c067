"""Grammars against llama.cpp itself: what a schema describes can be written to the end, anything else cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.gguf.constrain import Grammar, UnsupportedSchema, json_grammar, tool_grammar
from backends.gguf.constraint import Constraint
from backends.gguf.llama import GrammarState, LlamaError, Model, check_grammar, self_check

POINT = {"type": "object", "properties": {"x": {"type": "integer"}, "y": {"type": "number"}}, "required": ["x"]}


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    self_check()
    return Model(tiny_model)


def writes(model: Model, grammar: Grammar, text: str) -> bool:
    """Whether an answer may be exactly `text`."""
    state = GrammarState(model, grammar.text)
    try:
        for token in model.tokenize(text, add_special=False, parse_special=False):
            if not state.admits(token):
                return False
            state.accept(token)
        return state.admits(min(model.end_tokens))
    finally:
        state.close()


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (POINT, ['{"x": 1}', '{"x":-20,"y":0.5}', '{"x": 0, "y": 1e9}'], ['{"y": 1}', "{}", '{"x": 1.5}', '{"x": 01}']),
        (POINT, ['{\n  "x": 1\n}'], ['{"x": 1} and more', '{"x": 1,}', '{"z": 1, "x": 1}', '{"x": "1"}', '{"x": 1']),
        ({"enum": ["a", 1, None, 'quo"te']}, ['"a"', "1", "null", '"quo\\"te"'], ['"b"', "a", "2"]),
        ({"const": {"a": [1]}}, ['{"a": [1]}'], ['{"a": [2]}']),
        ({"type": ["string", "null"]}, ['""', '"\\u00e4 ä \\n"', "null"], ["1", '"open', '"a\nb"']),
        ({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}, ["[true, false]"], ["[true]"]),
        ({"type": "array", "maxItems": 0}, ["[]"], ["[1]"]),
        ({"anyOf": [{"type": "integer"}, POINT]}, ["5", '{"x": 5}'], ['"5"']),
        ({"allOf": [POINT]}, ['{"x": 5}'], ["5"]),
        (
            {"type": "object", "properties": {"a": {"const": 1}, "b": {"const": 2}, "c": {"const": 3}}},
            ["{}", '{"a": 1}', '{"b": 2}', '{"a": 1, "c": 3}', '{"b": 2, "c": 3}', '{"a": 1, "b": 2, "c": 3}'],
            ['{"a": 1,, "c": 3}', '{, "b": 2}', '{"c": 3, "a": 1}'],
        ),
        (
            {"$ref": "#/$defs/tree", "$defs": {"tree": {"type": "array", "items": {"$ref": "#/$defs/tree"}}}},
            ["[]", "[[], [[]]]"],
            ["[1]", "[[]"],
        ),
        (None, ["{}", '{"a": [1, {"b": null}]}'], ["[]", "1", ""]),
        ({}, ["1", '"a"', '{"a": [true]}'], ["", "nonsense"]),
    ],
    ids=lambda value: json.dumps(value)[:40] if not isinstance(value, list) else None,
)
def test_what_may_be_written(model: Model, schema: Any, good: list[str], bad: list[str]) -> None:
    grammar = json_grammar(schema)
    assert [text for text in good if not writes(model, grammar, text)] == []
    assert [text for text in bad if writes(model, grammar, text)] == []


def pairs() -> st.SearchStrategy[tuple[Any, Any]]:
    """(schema, a value that it describes)."""
    leaves = st.one_of(
        st.integers(-(10**9), 10**9).map(lambda value: ({"type": "integer"}, value)),
        st.floats(-1e9, 1e9, allow_nan=False).map(lambda value: ({"type": "number"}, round(value, 6))),
        st.booleans().map(lambda value: ({"type": "boolean"}, value)),
        st.text(max_size=8).map(lambda value: ({"type": "string"}, value)),
        st.lists(st.text(max_size=5), min_size=1, max_size=3).map(lambda values: ({"enum": values}, values[-1])),
    )
    return st.recursive(leaves, lambda inner: st.one_of(_arrays(inner), _objects(inner)), max_leaves=6)


def _arrays(inner: st.SearchStrategy[tuple[Any, Any]]) -> st.SearchStrategy[tuple[Any, Any]]:
    return st.tuples(inner, st.integers(0, 3)).map(
        lambda made: ({"type": "array", "items": made[0][0]}, [made[0][1]] * made[1])
    )


@st.composite
def _objects(draw: st.DrawFn, inner: st.SearchStrategy[tuple[Any, Any]]) -> tuple[Any, Any]:
    fields = draw(st.dictionaries(st.text(max_size=6), inner, max_size=4))
    required = [name for name in fields if draw(st.booleans())]
    given_too = [name for name in fields if name in required or draw(st.booleans())]
    schema = {"type": "object", "properties": {name: fields[name][0] for name in fields}, "required": required}
    return schema, {name: fields[name][1] for name in given_too}


@settings(max_examples=150)
@given(pairs(), st.sampled_from([None, 1]))
def test_every_value_of_a_schema_may_be_written(model: Model, pair: tuple[Any, Any], indent: int | None) -> None:
    schema, value = pair
    assert writes(model, json_grammar(schema), json.dumps(value, indent=indent, ensure_ascii=False))


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        ({"type": "string", "pattern": "a+"}, "schema: 'pattern' is not supported"),
        ({"type": "object", "properties": {"a": {"minimum": 1}}}, "schema.a: 'minimum' is not supported"),
        ({"type": "thing"}, "schema.type: 'thing' is no type"),
        ({"$ref": "http://elsewhere/"}, "only references inside the schema"),
        ({"$ref": "#/$defs/gone"}, "there is nothing at '#/\\$defs/gone'"),
        ({"allOf": [{}, {}]}, "allOf of more than one"),
        ({"type": "array", "minItems": 10**9}, "minItems and maxItems"),
        ({"type": "object", "properties": {"a": 5}}, "schema.a: should be an object"),
    ],
)
def test_what_cannot_be_kept_to_is_refused(schema: Any, what: str) -> None:
    with pytest.raises(UnsupportedSchema, match=what):
        json_grammar(schema)


def test_schemas_are_bounded() -> None:
    deep: Any = {}
    for _ in range(100):
        deep = {"type": "array", "items": deep or {"type": "null"}}
    with pytest.raises(UnsupportedSchema, match="levels deep"):
        json_grammar(deep)
    with pytest.raises(UnsupportedSchema, match="more than"):
        json_grammar({"type": "object", "properties": {str(n): {"const": n} for n in range(5000)}})


def test_a_schema_that_never_ends_is_no_grammar(model: Model) -> None:
    with pytest.raises(LlamaError, match="grammar"):
        check_grammar(model, json_grammar({"$ref": "#"}).text)


CALL = '<tool_call>{"name": "%s", "arguments": %s}</tool_call>'


def test_calls_are_those_of_the_tools(model: Model) -> None:
    tools: list[tuple[str, Any]] = [
        ("move", POINT),
        ("stop", None),
        ("say", {"type": "object", "$ref": "http://elsewhere/"}),
    ]
    grammar = tool_grammar(tools, forced=True, several=True)
    good = [CALL % ("move", '{"x": 1}'), CALL % ("stop", "{}"), CALL % ("say", '{"any": "thing"}')]
    good += [good[0] + "\n" + good[1], '<tool_call>\n{"arguments": {"x": 2}, "name": "move"}\n</tool_call>']
    bad = [CALL % ("fly", "{}"), CALL % ("move", "{}"), CALL % ("stop", '{"x": 1}'), "text", good[0] + "text", ""]
    assert [text for text in good if not writes(model, grammar, text)] == []
    assert [text for text in bad if writes(model, grammar, text)] == []
    one = tool_grammar(tools, forced=True, several=False)
    assert writes(model, one, good[0])
    assert not writes(model, one, good[0] + good[1])


@pytest.mark.parametrize(("text", "held"), [("so: <tool_call>", True), ("<tool_call>\n", True), ("<tool_cal", False)])
def test_a_call_that_the_model_opens_is_held_to_the_tools(model: Model, text: str, held: bool) -> None:
    constraint = Constraint(model, tool_grammar([("stop", None)], forced=False, several=False))
    try:
        for token in model.tokenize(text, add_special=False, parse_special=False):
            assert constraint.allows(token)
            constraint.accept(token)
        (letter, *_) = model.tokenize("q", add_special=False, parse_special=False)
        assert constraint.allows(letter) is not held
    finally:
        constraint.close()
