"""The one HTTP/1.1 client for engines: pooled keep-alive connections to one address, over TCP or a Unix socket.

Neighbours: http_connection.py (one exchange on one connection), openai.py (what is asked), process.py (/health).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from math import inf
from urllib.parse import urlsplit

from backends.errors import BackendUnavailable
from backends.http_connection import Connection, HttpResponse, NoAnswer

__all__ = ["HttpClient", "HttpResponse"]

# Timeouts are noticed by one sweep over all connections, not by a timer per request: this much late at most.
_SWEEP_SECONDS = 1.0
# Larger bodies are written on their own instead of being copied behind the head.
_COPY_BYTES = 64 * 1024

Headers = Sequence[tuple[bytes, bytes]]


class HttpClient:
    """Requests to one `address`: `http://host:port` or `unix:/path.sock`. Belongs to one event loop.

    Timeouts are in seconds, `inf` for none: `connect` until a connection exists, `response` until status and headers,
    `idle` between two reads of a body while somebody waits for it (a reader that is slow itself never times out).
    A connection unused for `pool_idle_seconds` is closed within 1 s more: uvicorn and vLLM close theirs after 5 s.
    Raises ValueError for an address it cannot understand.
    """

    def __init__(
        self,
        address: str,
        *,
        connect_timeout_seconds: float = 5.0,
        response_timeout_seconds: float = 600.0,
        idle_timeout_seconds: float = 120.0,
        pool_idle_seconds: float = 3.5,
    ) -> None:
        self._address = address
        self._path, self._host, self._port = _parse(address)
        self._connect_timeout_seconds = connect_timeout_seconds
        self._response_timeout_seconds = response_timeout_seconds
        self._idle_timeout_seconds = idle_timeout_seconds
        self._pool_idle_seconds = pool_idle_seconds
        shortest_seconds = min(response_timeout_seconds, idle_timeout_seconds, pool_idle_seconds)
        self._sweep_seconds = min(_SWEEP_SECONDS, shortest_seconds / 4)
        host = "localhost" if self._path else urlsplit(address).netloc
        self._head_end = b" HTTP/1.1\r\nhost: " + host.encode("ascii") + b"\r\n"
        self._idle: dict[Connection, None] = {}  # in order of their return: the last one is the warmest
        self._connections: set[Connection] = set()
        self._sweeper: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Future[None] | None = None
        self._closed = False

    async def request(self, method: str, path: str, headers: Headers = (), body: bytes = b"") -> HttpResponse:
        """Returns when status and headers have arrived, whatever the status. The caller owns the response and must
        `aclose()` it. Host and Content-Length are set here; redirects are not followed.

        Raises BackendUnavailable when nothing was sent, BackendTimeout, and BackendProtocolError when the connection
        broke or did not speak HTTP. Raises ValueError for a header that would break the framing. Cancelling it closes
        the connection.
        """
        head = self._head(method, path, headers, len(body))
        if self._closed:
            raise BackendUnavailable(f"The client of {self._address} is closed.")
        connection = self._take_idle()
        if connection is not None:
            try:
                return await self._exchange(connection, head, body)
            except NoAnswer:
                # The server closed it while it was idle, crossing our request on the way. A fresh connection cannot
                # fail like this, so once is enough (RFC 9112 section 9.3.1).
                pass
        return await self._exchange(await self._connect(), head, body)

    async def aclose(self) -> None:
        """Closes all connections, those in use too, and returns when they are gone. Idempotent."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        for connection in list(self._connections):
            connection.close()
        if self._connections:
            self._emptied = self._emptied or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._emptied)

    async def _exchange(self, connection: Connection, head: bytes, body: bytes) -> HttpResponse:
        if len(body) <= _COPY_BYTES:
            return await connection.exchange(head + body, b"")
        return await connection.exchange(head, body)

    def _head(self, method: str, path: str, headers: Headers, body_bytes: int) -> bytes:
        lines = [method.encode("ascii"), b" ", path.encode("ascii"), self._head_end]
        for name, value in headers:
            lines += (name, b": ", value, b"\r\n")
        if body_bytes or method == "POST":
            lines.append(b"content-length: %d\r\n" % body_bytes)
            newlines = len(headers) + 4
        else:
            newlines = len(headers) + 3
        lines.append(b"\r\n")
        head = b"".join(lines)
        # A value with a line break in it would be a header, or a whole request, of its own.
        if head.count(b"\n") != newlines or head.count(b"\r") != newlines or b"\0" in head:
            raise ValueError("control characters in a request line or header")
        return head

    def _take_idle(self) -> Connection | None:
        now = asyncio.get_running_loop().time()
        while self._idle:
            connection, _ = self._idle.popitem()
            # The loop may have been busy for longer than the sweep should have taken.
            if connection.deadline > now and not connection.is_closing():
                return connection
            connection.close()
        return None

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()

        def factory() -> Connection:
            timeouts = (self._response_timeout_seconds, self._idle_timeout_seconds)
            return Connection(loop, *timeouts, on_free=self._pool, on_lost=self._forget)

        limit = None if self._connect_timeout_seconds == inf else self._connect_timeout_seconds
        try:
            async with asyncio.timeout(limit):
                if self._path:
                    _, connection = await loop.create_unix_connection(factory, self._path)
                else:
                    _, connection = await loop.create_connection(factory, self._host, self._port)
        except TimeoutError:
            # Nothing was sent: another upstream may be asked, which BackendTimeout would forbid.
            raise BackendUnavailable(f"No connection to {self._address} within {limit} s.") from None
        except OSError as error:
            raise BackendUnavailable(f"No connection to {self._address}: {error.strerror or error}.") from error
        self._remember(connection)
        return connection

    def _remember(self, connection: Connection) -> None:
        if self._closed:
            connection.close()
            raise BackendUnavailable(f"The client of {self._address} is closed.")
        if not connection.lost:
            self._connections.add(connection)
        if self._sweeper is None:
            self._sweeper = connection.loop.call_later(self._sweep_seconds, self._sweep, connection.loop)

    def _forget(self, connection: Connection) -> None:
        self._connections.discard(connection)
        self._idle.pop(connection, None)
        if not self._connections and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def _pool(self, connection: Connection) -> None:
        connection.deadline = connection.loop.time() + self._pool_idle_seconds
        self._idle[connection] = None

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in [each for each in self._connections if each.deadline <= now]:
            connection.expire()
        self._sweeper = loop.call_later(self._sweep_seconds, self._sweep, loop) if self._connections else None


def _parse(address: str) -> tuple[str, str, int]:
    """(socket path, "", 0) or ("", host, port)."""
    if address.startswith("unix:/"):
        return address.removeprefix("unix:"), "", 0
    parts = urlsplit(address)
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query or parts.username:
        raise ValueError(f"not an address of the form http://host:port or unix:/path: {address!r}")
    return "", parts.hostname, parts.port or 80
