"""ToolCallParser: the same result whatever the borders, nothing lost, nothing leaked."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.gguf.toolcalls import CLOSE, OPEN, Arguments, CallStart, Part, ToolCallParser

CALL = '<tool_call>\n{"name": "get_time", "arguments": {"city": "Oslo"}}\n</tool_call>'
OSLO = ("get_time", '{"city": "Oslo"}')
# Braces, quotes and tags in strings are no structure.
HARD = '{"a": {"b": ["]}", {"c": "\\"}</tool_call><tool_call>"}]}, "d": "\\\\"}'


def parse(pieces: list[str]) -> list[str | tuple[str, str]]:
    """Texts, and calls by name and arguments, with what was given in pieces put together."""
    parser = ToolCallParser()
    merged: list[str | tuple[str, str]] = []
    for part in [*(part for piece in pieces for part in parser.feed(piece)), *parser.flush()]:
        last = merged[-1] if merged else None
        if isinstance(part, CallStart):
            merged.append((part.name, ""))
        elif isinstance(part, Arguments):
            assert isinstance(last, tuple), "arguments of no call"
            merged[-1] = (last[0], last[1] + part.text)
        elif isinstance(last, str):
            merged[-1] = last + part
        else:
            merged.append(part)
    return merged


def split(text: str, cuts: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(cut % len(text) for cut in cuts)})
    return [text[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(f"Sure. {CALL} done", ["Sure. ", OSLO, " done"], id="call-in-text"),
        pytest.param(CALL + CALL, [OSLO, OSLO], id="two-in-a-row"),
        pytest.param(CALL.removesuffix(CLOSE) + CALL, [OSLO, OSLO], id="the-first-not-closed"),
        pytest.param(CALL.removesuffix(CLOSE), [OSLO], id="not-closed"),
        pytest.param(f'{OPEN}{{"name": "f", "arguments": {HARD}}}{CLOSE}!', [("f", HARD), "!"], id="hard-strings"),
        pytest.param(f'{OPEN}{{"name":"f\\u00e9\\n","arguments":{{}}}}{CLOSE}', [("fé\n", "{}")], id="escaped-name"),
        pytest.param(f'{OPEN}{{"arguments": {{"x": 1}}, "name": "f"}}{CLOSE}', [("f", '{"x": 1}')], id="other-order"),
        pytest.param(f'{OPEN}{{"name": "f"}}{CLOSE}', [("f", "{}")], id="no-arguments"),
        pytest.param(f'{OPEN}{{"name": "f", "arguments": {{}}, "id": 1}}{CLOSE}', [("f", "{}")], id="more-fields"),
        pytest.param("a < b <tool", ["a < b <tool"], id="no-tag"),
    ],
)
@given(cuts=st.lists(st.integers(0, 200)))
def test_borders_do_not_matter(text: str, expected: list[str | tuple[str, str]], cuts: list[int]) -> None:
    assert parse(split(text, cuts)) == expected


@given(st.text("<tol_ca>/{} x", max_size=80).filter(lambda text: OPEN not in text))
def test_text_without_calls_comes_back_whole(text: str) -> None:
    assert "".join(part for part in parse([text]) if isinstance(part, str)) == text


@pytest.mark.parametrize(
    "inner",
    [
        "not json",
        "[1]",
        '{"name": 7, "arguments": {}}',
        '{"name": "f", "arguments": "x"}',
        '{"name": "a\nb", "arguments": {}}',
        '{"arguments": {}}',
        "[" * 100_000,
    ],
    ids=["text", "list", "name-no-string", "arguments-no-object", "name-no-json", "no-name", "deep"],
)
def test_what_is_no_call_stays_text(inner: str) -> None:
    text = f"<tool_call>{inner}</tool_call>"
    assert parse([text]) == [text]


@given(st.integers(0, len(CALL)), st.lists(st.integers(0, 200)))
def test_a_call_that_is_cut_leaves_no_markup_and_begins_like_the_whole(end: int, cuts: list[int]) -> None:
    cut = CALL[:end]
    found = parse(split(cut, cuts)) if cut else []
    if end < len(OPEN):
        assert found == ([cut] if cut else [])
    elif '"get_time"' not in cut:
        assert found == []
    else:
        (call,) = found
        assert isinstance(call, tuple)
        assert call[0] == "get_time"
        assert OSLO[1].startswith(call[1])
        assert (call[1] == OSLO[1]) == (OSLO[1] in cut)


@pytest.mark.parametrize(
    ("text", "calls", "cut"),
    [(CALL, 1, False), (CALL + CALL[:-30], 2, True), (CALL[:20], 0, True), ("text", 0, False)],
    ids=["whole", "second-cut", "before-the-name", "text"],
)
def test_it_counts_calls_and_tells_of_a_cut(text: str, calls: int, cut: bool) -> None:
    parser = ToolCallParser()
    parser.feed(text)
    parser.flush()
    assert (parser.calls, parser.cut) == (calls, cut)


def test_arguments_are_json_text_as_the_model_wrote_it() -> None:
    (call,) = parse(['<tool_call>{"name": "f", "arguments": {"t":  "é\\"", "n": 1}}</tool_call>'])
    assert call == ("f", '{"t":  "é\\"", "n": 1}')
    assert json.loads(call[1]) == {"t": 'é"', "n": 1}


def test_nothing_is_delayed_that_is_certain() -> None:
    parser = ToolCallParser()
    assert parser.feed("hello <") == ["hello "]
    start: list[Part] = [CallStart("f"), Arguments('{"a"')]
    assert parser.feed('tool_call>{"name": "f", "arguments": {"a"') == start
    assert parser.feed(': "b') == [Arguments(': "b')]
