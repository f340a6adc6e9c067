"""Drives one Connection without sockets and without a running loop: bytes in, outcome out."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from backends.errors import BackendError
from backends.http_connection import Connection
from backends.http_response import HttpResponse

T = TypeVar("T")


class Counted:
    """A parser that counts what it is given."""

    def __init__(self, parser: Any) -> None:
        self.reads = 0
        self._parser = parser

    def feed_data(self, data: bytes) -> None:
        self.reads += 1
        self._parser.feed_data(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)


class Wire(asyncio.Transport):
    """A transport that sends into the void."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


@dataclass(slots=True)
class Outcome:
    """What a caller gets: a whole answer, or what had come of it and the error. `kept`: the connection goes on."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    error: str
    kept: bool


class Talker:
    """One connection and what becomes of it. `loop` makes futures and tells the time; it does not run."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.freed = self.lost = 0
        self.wire = Wire()
        self.connection = Connection(loop, 5.0, 5.0, self._count_free, self._count_lost)
        self.connection.connection_made(self.wire)

    def _count_free(self, _: Connection) -> None:
        self.freed += 1

    def _count_lost(self, _: Connection) -> None:
        self.lost += 1

    def ask(self, pieces: Iterable[bytes]) -> Outcome:
        """One request, answered with `pieces` and then, unless the answer is whole by then, the end of the connection.
        Raises AssertionError where a caller would wait for ever, or a connection would stay behind."""
        asking = self.connection.exchange(b"", b"")
        asking.send(None)
        wire, feed = self.wire, self.connection.data_received
        for piece in pieces:
            if wire.aborted:
                break
            feed(piece)
        waiting = self.connection._response
        assert waiting is not None
        if wire.aborted or not waiting.complete:
            self.connection.connection_lost(None)
        return self._read(asking, waiting)

    def _read(self, asking: Coroutine[Any, Any, HttpResponse], waiting: HttpResponse) -> Outcome:
        body, error = b"", ""
        try:
            response = finished(asking)
            while True:
                body += finished(response.__anext__())
        except StopAsyncIteration:
            pass
        except BackendError as failure:
            error = f"{type(failure).__name__}: {failure}"
        freed = self.freed
        self.connection.release(waiting)
        kept = self.freed > freed
        assert kept != self.wire.aborted, "neither kept nor closed, or both"
        assert not (kept and error), "kept after an error"
        return Outcome(waiting.status, waiting.headers, body, error, kept)


def finished(step: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that has nothing to wait for any more."""
    try:
        step.send(None)
    except StopIteration as end:
        value: T = end.value
        return value
    raise AssertionError("a caller waits for ever")
