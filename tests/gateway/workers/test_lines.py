"""Pieces of whole lines, and several processes writing them to one pipe."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from gateway.workers.lines import pieces, shared_writer

WRITER = """
import sys
from gateway.workers.lines import shared_writer
write = shared_writer(1)
for batch in range(40):
    write("".join(f"{sys.argv[1]} {batch} {number} {'x' * 300}\\n" for number in range(128)))
"""


@given(st.lists(st.integers(0, 30)), st.integers(1, 40))
def test_pieces_are_whole_lines_within_the_limit(lengths: list[int], limit_bytes: int) -> None:
    data = b"".join(b"x" * length + b"\n" for length in lengths)
    found = list(pieces(data, limit_bytes))
    assert b"".join(found) == data
    assert all(piece.endswith(b"\n") for piece in found)
    assert all(len(piece) <= limit_bytes or piece.count(b"\n") == 1 for piece in found)


def test_text_without_a_line_end_is_written_too() -> None:
    assert list(pieces(b"a\nbcdef", 4)) == [b"a\n", b"bcdef"]


def test_lines_of_three_processes_stay_whole() -> None:
    """The pipe is as small as can be, so that every writer is stopped in the middle of its batches all the time."""
    reading, writing = os.pipe()
    assert fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, select.PIPE_BUF) == select.PIPE_BUF
    with os.fdopen(reading, "rb") as pipe:
        writers = [subprocess.Popen([sys.executable, "-c", WRITER, name], stdout=writing) for name in ("a", "b", "c")]
        os.close(writing)
        lines = pipe.read().decode().splitlines()
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    expected = {f"{name} {b} {n} {'x' * 300}" for name in "abc" for b in range(40) for n in range(128)}
    assert Counter(lines) == Counter(expected)


def test_reader_that_went_away_costs_nothing_but_its_lines() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    shared_writer(writing)("line\n" * 10)
    os.close(writing)
