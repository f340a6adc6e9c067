"""One client connection: uvicorn's httptools protocol with the bounds it lacks.

Bytes and time of a request's head, and the number of connections, are limited while they arrive, before any of our
other code runs; what cannot be parsed is refused in JSON. Neighbours: server.py (hands this to uvicorn), middleware.py.
"""

from __future__ import annotations

import asyncio
import json
import re
from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

MAX_HEAD_BYTES = 64 * 1024
HEAD_TIMEOUT_SECONDS = 20.0
MAX_PIPELINED = 8
# How long a refused connection may go on sending into the void.
LINGER_SECONDS = 1.0


_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


def _without_upgrade(data: bytes) -> bytes:
    """The same request without its offer to speak another protocol, which a server may ignore. httptools would take the
    body for that protocol's bytes and drop it: Java's HttpClient offers h2c with every first request."""
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"\r\nx-ignored:", head) + end + rest


class _HeadTooLarge(Exception):
    """Raised inside the parser, which wraps it in a parser error; uvicorn then calls send_400_response."""


class ClientConnection(HttpToolsProtocol):
    """`max_connections` is set by `connection_class`."""

    max_connections = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Per connection: whether its end has begun, and how much the last read brought.
        self._refused = False
        self._running: RequestResponseCycle | None = None
        self._read_bytes = 0
        # Per request: an upper bound of what has come of its head, and until when the rest may.
        self._in_head = True
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._refuse(503, "server_error", "overloaded", "Too many connections.")
            return
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_SECONDS, self._head_too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head_timer()
        # uvicorn tells only the newest request, which is not the running one when requests were pipelined.
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if (self._in_head or not self._answering) and data.find(b"pgrade", 0, MAX_HEAD_BYTES) >= 0:
            data = _without_upgrade(data)
        self._read_bytes = len(data)
        self._head_bytes += self._read_bytes
        super().data_received(data)
        if not self._in_head:
            return
        if self._head_bytes > MAX_HEAD_BYTES:
            self.send_400_response("")
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_SECONDS, self._head_too_slow)

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = self._read_bytes
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        # A read may hold a head and much of a body: only where both together are too long is it worth adding up.
        if self._head_bytes > MAX_HEAD_BYTES:
            self._head_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if self._head_bytes > MAX_HEAD_BYTES:
                raise _HeadTooLarge
        self._in_head = False
        self._forget_head_timer()
        super().on_headers_complete()
        # uvicorn stops reading when requests queue up, and then does not see the client leave.
        if 0 < len(self.pipeline) <= MAX_PIPELINED:
            self.flow.resume_reading()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        """uvicorn's answer to what its parser refuses; in the middle of another answer it would garble that one."""
        if self._answering and (self.pipeline or self.cycle.response_started):
            self.transport.abort()
            return
        if self._answering:
            # The body broke off in its framing: whoever reads it learns that no more will come, and stays silent.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            text = f"The request's head is larger than {MAX_HEAD_BYTES} bytes."
            self._refuse(431, "invalid_request_error", "headers_too_large", text)
        else:
            self._refuse(400, "invalid_request_error", "invalid_request", "This is not valid HTTP/1.1.")

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _refuse(self, status: int, kind: str, code: str, message: str) -> None:
        if self._refused or self.transport.is_closing():
            return
        body = json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()
        head = (
            f"HTTP/1.1 {status} Refused\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self._refused = True
        self.transport.write(head.encode() + body)
        # Closing with bytes unread would reset the connection, and the client would lose the answer.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def _head_too_slow(self) -> None:
        self._head_timer = None
        if self._answering:
            # Half of a pipelined request: it may not end the answer that is running.
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_SECONDS, self._head_too_slow)
        elif self._head_bytes == 0:
            self.transport.close()
        else:
            self._refuse(408, "invalid_request_error", "request_timeout", "The request's head did not arrive in time.")

    def _forget_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def connection_class(max_connections: int) -> type[ClientConnection]:
    """The protocol class for a listener that holds at most `max_connections`."""
    return type("BoundedConnection", (ClientConnection,), {"max_connections": max_connections})
