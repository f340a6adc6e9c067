"""Whole events, however the bytes were split."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.errors import BackendProtocolError
from gateway.events import MAX_HELD_BYTES, WholeEvents, is_opening, without_usage

DONE = b"data: [DONE]\n\n"


def cut(*chunks: bytes) -> tuple[list[bytes], WholeEvents]:
    events = WholeEvents()
    return [events.feed(chunk) for chunk in chunks], events


def test_chunk_that_ends_with_an_event_goes_through_untouched() -> None:
    chunk = b"data: 1\n\ndata: 2\n\n"
    assert WholeEvents().feed(chunk) is chunk


@pytest.mark.parametrize(
    ("chunks", "ready"),
    [
        ((b"data: 1\n\nda", b"ta: 2\n\n"), [b"data: 1\n\n", b"data: 2\n\n"]),
        ((b"data: 1", b"\n", b"\n"), [b"", b"", b"data: 1\n\n"]),
        ((b"data: 1\r\n\r", b"\ndata: 2\r\n\r\nx"), [b"", b"data: 1\r\n\r\ndata: 2\r\n\r\n"]),
        ((b": ping\n\n",), [b": ping\n\n"]),
        ((b"", b"\n"), [b"", b""]),
    ],
    ids=["split inside", "split at the end", "crlf", "comment", "nothing yet"],
)
def test_events_are_passed_on_whole(chunks: tuple[bytes, ...], ready: list[bytes]) -> None:
    assert cut(*chunks)[0] == ready


def test_half_an_event_at_the_end_is_dropped_and_not_done() -> None:
    ready, events = cut(b'data: {"a":1}\n\ndata: {"b"')
    assert ready == [b'data: {"a":1}\n\n']
    assert events.finish() == b""
    assert not events.done


@pytest.mark.parametrize("end", [b"data: [DONE]\n\n", b"data:[DONE]\n\n", b"data: [DONE]\r\n\r\n"], ids=repr)
def test_end_marker_is_seen(end: bytes) -> None:
    _, events = cut(b"data: 1\n\n", end)
    assert events.done
    assert events.finish() == b""
    assert events.done


@pytest.mark.parametrize("end", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r\n"], ids=repr)
def test_end_marker_without_its_blank_line_is_completed(end: bytes) -> None:
    _, events = cut(b"data: 1\n\n" + end)
    assert events.finish() == DONE
    assert events.done


@pytest.mark.parametrize("end", [b"xdata: [DONE]\n\n", b'data: "data: [DONE]"\n\n', b"data: [DONE\n\n", b""], ids=repr)
def test_what_only_looks_like_the_end_marker_is_none(end: bytes) -> None:
    _, events = cut(b"data: 1\n\n" + end)
    events.finish()
    assert not events.done


USAGE = b'data: {"id":"1","choices":[],"usage":{"prompt_tokens":3,"prompt_tokens_details":{"cached_tokens":1}}}\n\n'
TOKEN = b'data: {"choices":[{"delta":{"content":"a"}}],"usage":null}\n\n'


@pytest.mark.parametrize(
    ("events", "kept"),
    [
        (TOKEN + USAGE + DONE, TOKEN + DONE),
        (USAGE, b""),
        (USAGE.replace(b"\n", b"\r\n") + DONE, DONE),
        (USAGE.replace(b":[],", b" : [ ] ,").replace(b'"usage":', b'"usage": ') + DONE, DONE),
        (b"event: message\n" + USAGE + DONE, DONE),
        (TOKEN + USAGE + USAGE + DONE, TOKEN + DONE),
        (TOKEN + USAGE.replace(b'"choices":[],', b"") + TOKEN, TOKEN + TOKEN),
    ],
    ids=["between others", "alone", "crlf", "spaced", "of two lines", "twice", "without choices"],
)
def test_event_with_the_usage_alone_is_kept_from_who_did_not_ask(events: bytes, kept: bytes) -> None:
    assert without_usage(events) == kept


@pytest.mark.parametrize(
    "events",
    [
        TOKEN + DONE,
        b'data: {"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":3}}\n\n' + DONE,
        b'data: {"choices":[],"prompt_filter_results":[],"usage":null}\n\n',
        b'data: {"choices":[{"delta":{"x":{"choices":[]}}}],"usage":{"prompt_tokens":3}}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":3},"x":"' + b"a" * 300_000,
        b'data: "usage":{\n' + b"a\n" * 100_000,
        b'data: {"choices":[{"delta":{"content":"\\"choices\\":[] \\"usage\\":{"}}]}\n\n',
        b": ping\n\n",
    ],
    ids=[
        "no usage",
        "with a token",
        "another event without choices",
        "choices inside",
        "a piece",
        "lines without end",
        "in a text",
        "comment",
    ],
)
def test_no_other_event_is_kept_from_anybody(events: bytes) -> None:
    assert without_usage(events) == events


ROLE = b'data: {"choices":[{"delta":{"role":"assistant","content":""}}]}\n\n'


@pytest.mark.parametrize(
    ("events", "opening"),
    [
        (ROLE, True),
        (ROLE.replace(b'""', b" null"), True),
        (b": ping\n\n", True),
        (ROLE.replace(b'""', b'"Hi"'), False),
        (ROLE + ROLE.replace(b'""', b'"Hi"'), False),
        (b'data: {"choices":[{"text":""}]}\n\n', False),
        (b"data: [DONE]\n\n", False),
    ],
)
def test_role_alone_is_no_token(events: bytes, opening: bool) -> None:
    assert is_opening(events) == opening


def test_endless_event_is_passed_on_in_pieces() -> None:
    events = WholeEvents()
    fed = passed = 0
    for _ in range(40):
        fed += 16 * 1024
        passed += len(events.feed(b"x" * 16 * 1024))
        assert fed - passed <= MAX_HELD_BYTES
    assert passed > 0


@given(
    st.lists(
        st.sampled_from([b"data: 1\n\n", b": ping\n\n", b"data: a\r\n\r\n", b"event: x\ndata: 2\n\n"]), max_size=9
    ),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_any_split_yields_the_same_bytes_and_only_whole_events(parts: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(parts) + DONE
    points = sorted({0, len(stream), *(point for point in cuts if point < len(stream))})
    events = WholeEvents()
    ready = [events.feed(stream[start:end]) for start, end in itertools.pairwise(points)]
    assert b"".join(ready) == stream
    assert all(not piece or piece.endswith((b"\n\n", b"\n\r\n")) for piece in ready)
    assert events.done


TOKEN = b'data: {"choices":[{"delta":{"content":"Hi"}}]}\n\n'
# As vLLM 0.32 says it, with words that may hold anything.
ERROR = b'data: {"error": {"message": "canary", "type": "InternalServerError", "param": null, "code": 500}}\n\n'
ERRORS = {
    "vllm": ERROR,
    "no blank": ERROR.replace(b"data: {", b"data:{"),
    "crlf": ERROR.replace(b"\n", b"\r\n"),
    "named event": b"event: error\n" + ERROR,
    "two lines": ERROR.replace(b'"type"', b'\ndata: "type"'),
    "old vllm": b'data: {"object":"error","message":"canary","type":"InternalServerError","code":500}\n\n',
    "beside an empty answer": b'data: {"id":"1","choices":[],"error":{"message":"canary"}}\n\n',
    "after the tokens of its read": TOKEN + ERROR,
    "text": b'data: {"error": "canary"}\n\n',
}


def fed(*chunks: bytes) -> tuple[bytes, str]:
    """What is passed on of a stream, and what it breaks off with."""
    events, passed = WholeEvents(), b""
    try:
        for chunk in chunks:
            passed += events.feed(chunk)
        passed += events.finish()
    except BackendProtocolError as error:
        assert not events.done
        return passed, str(error)
    return passed, ""


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("end", [DONE, b"data: [DONE]", b""], ids=["done", "done unfinished", "cut"])
def test_an_error_of_the_engine_breaks_the_stream_off_in_our_words(error: bytes, size: int, end: bytes) -> None:
    stream = TOKEN + error + end
    passed, told = fed(*(stream[start : start + size] for start in range(0, len(stream), size)))
    assert passed == (TOKEN * 2 if error.startswith(TOKEN) else TOKEN)
    assert told.startswith("It broke its answer off with an error")
    assert ("InternalServerError" in told) == (b"InternalServerError" in error)
    assert "canary" not in told


def test_an_error_without_its_blank_line_is_one_too() -> None:
    assert fed(TOKEN, ERROR[:-2])[1]
    assert fed(TOKEN + ERROR[:-1])[1]


def test_a_kind_that_is_no_word_is_not_shown() -> None:
    _, told = fed(ERROR.replace(b"InternalServerError", b"the prompt was"))
    assert told == "It broke its answer off with an error."


@pytest.mark.parametrize(
    "event",
    [
        {"choices": [{"delta": {"content": "error"}}]},
        {"choices": [{"delta": {"content": '{"error": {"message": "x"}}'}}]},
        {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": '"error":'}}]}}]},
        {"choices": [{"delta": {"content": 'data: {"error": 1}\n\n'}}]},
        {"choices": [{"error": {"code": 1}, "delta": {}}]},
        {"error": None, "choices": []},
        ["error"],
    ],
    ids=str,
)
def test_an_answer_that_speaks_of_errors_is_passed_on(event: Any) -> None:
    stream = b"data: " + json.dumps(event).encode() + b"\n\n" + DONE
    assert fed(stream) == (stream, "")


def test_what_is_no_json_is_passed_on() -> None:
    stream = b'data: {"error"\n\ndata: "error"}\n\n: "error"\n\ndata: ' + b'["error",' * 100_000 + b"\n\n" + DONE
    assert fed(stream) == (stream, "")


TEXTS = st.text() | st.sampled_from(["error", '"error"', '{"error":', 'data: {"error": 1}\n\n', "\n\n"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(JSON, min_size=1, max_size=3), st.booleans(), st.lists(st.integers(0, 400), max_size=4))
def test_no_text_of_an_answer_looks_like_an_error(deltas: list[Any], ascii_only: bool, cuts: list[int]) -> None:
    events = [{"id": "error", "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    stream = b"".join(b"data: " + json.dumps(e, ensure_ascii=ascii_only).encode() + b"\n\n" for e in events) + DONE
    points = sorted({0, len(stream), *(point for point in cuts if point < len(stream))})
    assert fed(*(stream[start:end] for start, end in itertools.pairwise(points))) == (stream, "")
