"""ToolCallParser: the same result whatever the borders, nothing lost, nothing leaked."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.gguf.toolcalls import ToolCall, ToolCallParser

CALL = '<tool_call>\n{"name": "get_time", "arguments": {"city": "Oslo"}}\n</tool_call>'


def parse(pieces: list[str]) -> list[str | ToolCall]:
    parser = ToolCallParser()
    found = [part for piece in pieces for part in parser.feed(piece)]
    merged: list[str | ToolCall] = []
    for part in [*found, *parser.flush()]:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    return merged


@given(st.lists(st.integers(0, len(CALL) + 20)))
def test_borders_do_not_matter(cuts: list[int]) -> None:
    text = f"Sure. {CALL} done"
    edges = sorted({0, len(text), *(c % len(text) for c in cuts)})
    pieces = [text[a:b] for a, b in pairwise(edges)]
    assert parse(pieces) == ["Sure. ", ToolCall("get_time", '{"city": "Oslo"}'), " done"]


@given(st.text("<tol_ca>/{} x", max_size=80))
def test_text_without_valid_calls_comes_back_whole(text: str) -> None:
    assert "".join(part for part in parse([text]) if isinstance(part, str)) == text


@pytest.mark.parametrize(
    "inner",
    [
        "not json",
        "[1]",
        '{"name": 7, "arguments": {}}',
        '{"name": "f", "arguments": "x"}',
        '{"arguments": {}}',
        "[" * 100_000,
    ],
    ids=["text", "list", "name-no-string", "arguments-no-object", "no-name", "deep"],
)
def test_what_is_no_call_stays_text(inner: str) -> None:
    text = f"<tool_call>{inner}</tool_call>"
    assert parse([text]) == [text]


def test_two_calls_in_a_row() -> None:
    assert [p.name for p in parse([CALL + CALL]) if isinstance(p, ToolCall)] == ["get_time", "get_time"]


def test_a_call_that_was_not_closed_still_counts_when_it_is_whole() -> None:
    assert parse([CALL.removesuffix("</tool_call>")]) == [ToolCall("get_time", '{"city": "Oslo"}')]


def test_arguments_are_json_text() -> None:
    (call,) = parse(['<tool_call>{"name": "f", "arguments": {"t": "é\\"", "n": 1}}</tool_call>'])
    assert isinstance(call, ToolCall)
    assert json.loads(call.arguments) == {"t": 'é"', "n": 1}


def test_text_before_a_possible_tag_is_not_delayed() -> None:
    assert ToolCallParser().feed("hello <") == ["hello "]
