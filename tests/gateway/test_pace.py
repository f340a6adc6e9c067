"""What a stream's reads say about its tokens."""

from __future__ import annotations

from time import perf_counter

from backends.base import Operation
from gateway.histogram import Histogram
from gateway.pace import Pace
from gateway.record import Record
from tests.fakes import chat_events

ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
TOKEN, DONE = chat_events("x")[0], b"data: [DONE]\n\n"


def pace() -> tuple[Pace, Record, Histogram]:
    record, pauses = Record(Operation.CHAT, "r", perf_counter()), Histogram((1.0, 10.0))
    return Pace(record, pauses), record, pauses


def test_role_is_no_token_and_the_first_token_no_pause() -> None:
    mine, record, pauses = pace()
    mine.note(ROLE, perf_counter())
    assert record.first_token is None
    mine.note(TOKEN, perf_counter())
    assert record.first_token is not None
    assert (sum(pauses.counts), mine.tokens) == (0, 1)


def test_each_token_of_a_read_has_its_part_of_the_pause_and_the_end_none() -> None:
    mine, record, pauses = pace()
    mine.note(TOKEN, perf_counter())
    start = record.first_token or 0.0
    mine.note(TOKEN * 4, start + 8.0)
    assert pauses.counts == [0, 4, 0]
    mine.note(TOKEN + DONE, start + 8.5)
    assert pauses.counts == [1, 4, 0]
    mine.note(b": ping\n\n", start + 90.0)
    mine.note(DONE, start + 99.0)
    assert (pauses.counts, round(pauses.total, 6), mine.tokens) == ([1, 4, 0], 8.5, 6)


def test_pause_of_a_slow_client_is_not_the_engines() -> None:
    mine, _, pauses = pace()
    mine.note(TOKEN, perf_counter() - 100.0)
    mine._before -= 100.0  # it was long ago
    mine.go_on()
    mine.note(TOKEN, perf_counter())
    assert pauses.counts == [1, 0, 0]
