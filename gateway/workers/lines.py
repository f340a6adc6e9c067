"""Lines that several processes write to one place, and that stay whole.

POSIX writes up to PIPE_BUF (4,096 bytes on Linux) to a pipe in one piece, Linux does so on a Unix stream socket (the
journal's), and a write to a file at one offset excludes the next. So a batch goes out in pieces of whole lines of at
most that size: no lock that a killed process could keep, and no half line of one either.
"""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from contextlib import suppress


def pieces(data: bytes, limit_bytes: int = select.PIPE_BUF) -> Iterator[bytes]:
    """`data` cut after line ends into pieces of at most `limit_bytes`. A single longer line is a piece of its own."""
    start = 0
    while len(data) - start > limit_bytes:
        end = data.rfind(b"\n", start, start + limit_bytes) + 1
        if end == 0:
            end = data.find(b"\n", start) + 1 or len(data)
        yield data[start:end]
        start = end
    if start < len(data):
        yield data[start:]


def shared_writer(descriptor: int) -> Callable[[str], None]:
    """Writes whole lines to `descriptor`, which other processes write to as well. A reader that has gone away, or a
    full disk, costs its lines and nothing else."""

    def write(text: str) -> None:
        with suppress(OSError):
            for piece in pieces(text.encode()):
                _write_all(descriptor, piece)

    return write


def _write_all(descriptor: int, piece: bytes) -> None:
    """More than one write only where one is not promised to be whole: a signal or a full disk cut it."""
    while piece:
        piece = piece[os.write(descriptor, piece) :]
