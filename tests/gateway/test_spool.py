"""Lines whose reader is slow."""

from __future__ import annotations

import os
import threading

import pytest

from gateway import log, spool
from gateway.spool import Spool
from tests.engine import wait_for


class Reader:
    """Reads when it is told to."""

    def __init__(self) -> None:
        self.reads = threading.Event()
        self.began = threading.Event()
        self.read: list[str] = []

    def __call__(self, text: str) -> None:
        self.began.set()
        self.reads.wait(60)
        self.read.append(text)


def test_all_of_it_is_written_in_order_by_the_end() -> None:
    reader = Reader()
    reader.reads.set()
    with Spool(reader) as write:
        for number in range(1000):
            write(f"{number}\n")
    assert "".join(reader.read) == "".join(f"{number}\n" for number in range(1000))


def test_nobody_waits_for_a_reader_that_has_stalled_and_what_is_too_much_is_dropped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spool, "PATIENCE_SECONDS", 30.0)
    reader = Reader()
    with Spool(reader, most_characters=10) as write:
        write("a" * 6)
        reader.began.wait(60)
        write("b" * 4)
        write("c")  # what is being written still counts
        reader.reads.set()
        wait_for(lambda: len(reader.read) == 2)
        write("d")
    assert "".join(reader.read) == "aaaaaabbbbd"
    assert "1 batches of lines were dropped" in caplog.text


def test_the_end_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "PATIENCE_SECONDS", 0.01)
    reader = Reader()
    with Spool(reader) as write:
        write("a")
    reader.reads.set()


def test_a_pipe_that_nobody_reads_holds_no_loop() -> None:
    source, sink = os.pipe()
    with open(sink, "w", encoding="utf-8") as stream, Spool(log.writer(stream)) as write:
        for _ in range(100):
            write("x" * 10_000)
        assert len(os.read(source, 1 << 20)) > 0
        os.close(source)  # and then a reader that is gone
