"""A response that is being read: status, headers, and the body as far as it has come.

Neighbours: http_connection.py (fills it), http.py (hands it out).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from backends.errors import BackendError

if TYPE_CHECKING:
    from backends.http_connection import Connection


class HttpResponse:
    """A response whose status and headers (names in lower case) have arrived; its body comes through `chunks`.
    Owns its connection until `close()`, which must be called."""

    __slots__ = ("_connection", "complete", "failure", "headers", "held_bytes", "parts", "status", "waiter")

    def __init__(self, connection: Connection, parts: list[bytes]) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        # What the connection has put here for the reader.
        self.parts = parts
        self.held_bytes = 0
        self.complete = False
        self.failure: BackendError | None = None
        self.waiter: asyncio.Future[None] | None = None
        self._connection = connection

    @property
    def chunks(self) -> AsyncIterator[bytes]:
        """The body, without transfer coding, in pieces as large as they were read. Raises BackendProtocolError where it
        was cut short, BackendTimeout where nothing came for too long; everything read before that is yielded first."""
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        parts = self.parts
        while not parts:
            if self.failure is not None:
                raise self.failure
            if self.complete:
                raise StopAsyncIteration
            await self._connection.wait(self)
        chunk = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self.held_bytes = 0
        if self._connection.reading_paused:
            self._connection.resume()
        return chunk

    def whole(self) -> bytes | None:
        """The whole body if it is here already; None if more is to come. Nothing is left for `chunks` then."""
        if not self.complete or self.failure is not None:
            return None
        body = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
        self.parts.clear()
        self.held_bytes = 0
        return body

    async def read(self, max_bytes: int) -> bytes:
        """The rest of the body, or its first `max_bytes`. Raises what `chunks` raises."""
        body = bytearray()
        async for chunk in self:
            body += chunk
            if len(body) >= max_bytes:
                break
        return bytes(body[:max_bytes])

    def close(self) -> None:
        """Gives the connection back if the whole body has arrived, else closes it, which tells the server to stop.
        Idempotent."""
        self._connection.release(self)

    def wake(self) -> None:
        """Lets a reader look at the new state of things."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)
