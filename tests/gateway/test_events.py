"""Whole events, however the bytes were split."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.events import MAX_HELD_BYTES, WholeEvents, is_opening

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
