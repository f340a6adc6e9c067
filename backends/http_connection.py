"""One connection of the HTTP client, and the response that is being read from it.

httptools (llhttp, strict) finds the frames; whole reads are handed on, and a reader that is slow stops the transport.
Neighbours: http.py (the pool, the only user).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from math import inf
from typing import cast

import httptools

from backends.errors import BackendError, BackendProtocolError, BackendTimeout

# Bytes of a body that may wait for their reader before the transport is paused; one more read can come on top.
HIGH_WATER_BYTES = 256 * 1024
# What one piece costs on top of its bytes, so that a body in tiny chunks is bounded as well.
_PART_BYTES = 48
_FRAMED = frozenset((b"content-length", b"transfer-encoding"))
MAX_HEADERS = 128
MAX_HEAD_BYTES = 64 * 1024


class NoAnswer(BackendProtocolError):
    """The connection ended before one byte of the response: on a reused one, the request may be sent again."""


class HttpResponse:
    """A response whose status and headers (names in lower case) have arrived; its body comes through `chunks`.
    Owns its connection until `aclose()`, which must be awaited."""

    __slots__ = ("_connection", "complete", "failure", "headers", "held_bytes", "parts", "status", "waiter")

    def __init__(self, connection: Connection) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        # What the connection has put here for the reader.
        self.parts: list[bytes] = []
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

    async def aclose(self) -> None:
        """Gives the connection back if the whole body has arrived, else closes it, which tells the server to stop.
        Idempotent."""
        self._connection.release(self)

    def wake(self) -> None:
        """Lets a reader look at the new state of things."""
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class Connection(asyncio.Protocol):
    """One exchange at a time. `deadline` is the loop time when `expire()` is due; `on_free` is told when it may be used
    again, `on_lost` when it is gone."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        response_timeout_seconds: float,
        idle_timeout_seconds: float,
        on_free: Callable[[Connection], None],
        on_lost: Callable[[Connection], None],
    ) -> None:
        # Per connection
        self.loop = loop
        self.deadline = inf
        self.lost = False
        self._on_free = on_free
        self._on_lost = on_lost
        self._response_timeout_seconds = response_timeout_seconds
        self._idle_timeout_seconds = idle_timeout_seconds
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        # Per exchange
        self._response: HttpResponse | None = None
        self._answered = False
        self._interim = False
        self._reusable = False
        self._paused = False
        self._head_bytes = 0
        self._idle_bytes = 0

    async def exchange(self, head: bytes, body: bytes) -> HttpResponse:
        """Sends one request and returns its response once the headers are there; raises as HttpClient.request does."""
        if self.lost or self._transport.is_closing():
            raise NoAnswer("The connection was closed at once.")
        response = self._response = HttpResponse(self)
        self._answered = self._reusable = False
        self._head_bytes = self._idle_bytes = 0
        self._transport.write(head)
        if body:
            self._transport.write(body)
        try:
            while not response.status:
                if response.failure is not None:
                    raise response.failure
                await self.wait(response)
        except BaseException:
            self.release(response)
            raise
        return response

    async def wait(self, response: HttpResponse) -> None:
        """Until the response has changed. Only while somebody waits here does a timeout run."""
        seconds = self._idle_timeout_seconds if response.status else self._response_timeout_seconds
        self.deadline = self.loop.time() + seconds
        response.waiter = self.loop.create_future()
        try:
            await response.waiter
        finally:
            response.waiter = None
            if self._response is response:
                self.deadline = inf

    def release(self, response: HttpResponse) -> None:
        """The response wants nothing more of this connection."""
        if self._response is not response:
            return
        self._response = None
        response.parts.clear()
        # A request that was not sent to its end would be continued into the next one.
        if self._reusable and not self._transport.is_closing() and not self._transport.get_write_buffer_size():
            self.resume()
            self._on_free(self)
            return
        self.deadline = inf
        self._transport.abort()
        if not response.complete and response.failure is None:
            response.failure = BackendProtocolError("The response was closed before its end.")
            response.wake()

    def resume(self) -> None:
        """The reader has caught up."""
        if self._paused:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def is_closing(self) -> bool:
        """Whether it is of no more use."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Ends it now, whatever it is doing."""
        self._fail(BackendProtocolError("The connection was closed by its owner."))

    def expire(self) -> None:
        """Its deadline has passed."""
        response = self._response
        if response is None or not response.status:
            message = f"No response within {self._response_timeout_seconds} s."
        else:
            message = f"No data within {self._idle_timeout_seconds} s."
        self._fail(BackendTimeout(message))

    def _fail(self, error: BackendError) -> None:
        response = self._response
        if response is not None and not response.complete and response.failure is None:
            response.failure = error
            response.wake()
        self._reusable = False
        self.deadline = inf
        self._transport.abort()

    # -- asyncio.Protocol ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports have the methods, not the base class.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None or response.complete or response.failure is not None:
            # Nobody asked for it: the two sides no longer agree on where a message ends.
            self._reusable = False
            self._transport.abort()
            return
        self._answered = True
        held_bytes = response.held_bytes
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._reusable = False
            if not response.complete:
                self._fail(_fault(error))
                return
        if response.held_bytes > HIGH_WATER_BYTES and not self._paused and not self._transport.is_closing():
            self._paused = True
            self._transport.pause_reading()
        # Endless headers, interim responses, chunk extensions and trailers all bring the body no further.
        self._idle_bytes = self._idle_bytes + len(data) if response.held_bytes == held_bytes else 0
        if self._idle_bytes > MAX_HEAD_BYTES and not response.complete:
            self._fail(BackendProtocolError(f"More than {MAX_HEAD_BYTES} bytes of headers."))
        if response.status:
            response.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._on_lost(self)
        self._reusable = False
        response = self._response
        if response is None or response.complete or response.failure is not None:
            return
        if not self._answered:
            response.failure = NoAnswer("The connection was closed before a response.")
        elif exc is None and response.status and not _FRAMED.intersection(name for name, _ in response.headers):
            response.complete = True  # its end was to be told by the end of the connection
        else:
            response.failure = BackendProtocolError(f"The response was cut short: {exc or 'connection closed'}.")
        response.wake()

    # -- httptools' callbacks -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._response is None or self._response.complete:
            raise BackendProtocolError("Bytes after the end of the response.")

    def on_header(self, name: bytes, value: bytes) -> None:
        response = self._response
        if response is None or response.status:  # with a status it is a trailer
            return
        headers = response.headers
        self._head_bytes += len(name) + len(value)
        if len(headers) >= MAX_HEADERS or self._head_bytes > MAX_HEAD_BYTES:
            raise BackendProtocolError(f"More than {MAX_HEADERS} headers or {MAX_HEAD_BYTES} bytes of them.")
        headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        response = self._response
        if response is None:
            return
        if status < 200:
            self._interim = True
            response.headers.clear()
        else:
            response.status = status

    def on_body(self, body: bytes) -> None:
        response = self._response
        if response is not None:
            response.parts.append(body)
            response.held_bytes += len(body) + _PART_BYTES

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        elif self._response is not None:
            self._response.complete = True
            self._reusable = self._parser.should_keep_alive()


def _fault(error: Exception) -> BackendProtocolError:
    """Our own refusals come wrapped by the parser."""
    cause = error.__context__
    if isinstance(cause, BackendProtocolError):
        return cause
    return BackendProtocolError(f"The response is not HTTP/1.1: {error or type(error).__name__}.")
