"""One connection of the HTTP client: sends a request, finds the frames of its answer.

httptools (llhttp, strict) parses; what it would let pass and nobody should send is refused here. Whole reads are
handed on, and a slow reader stops the transport. Neighbours: http_response.py (what is read), http_pool.py (the owner).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from math import inf
from typing import cast

import httptools

from backends.errors import BackendError, BackendProtocolError, BackendTimeout
from backends.http_repeated import Repeated
from backends.http_response import HttpResponse
from backends.outbox import outbox_of

# Bytes of a body that may wait for their reader before the transport is paused; one more read can come on top.
HIGH_WATER_BYTES = 256 * 1024
# What one piece costs on top of its bytes, so that a body in tiny chunks is bounded as well.
_PART_BYTES = 48
# A request's body is handed to the transport in slices of this size, as fast as the server takes them.
_SLICE_BYTES = 256 * 1024
MAX_HEADERS = 128
MAX_HEAD_BYTES = 64 * 1024
_HTTP_1_1, _HTTP_1_0 = b"HTTP/1.1 ", b"HTTP/1.0 "
_FRAMING = frozenset((b"content-length", b"transfer-encoding"))
_BODILESS = frozenset((204, 304))


_TOO_LONG = f"More than {MAX_HEAD_BYTES} bytes of headers."


class NoAnswer(BackendProtocolError):
    """The connection ended before one byte of the response: on a reused one, the request may be sent again."""


class Connection(asyncio.Protocol):
    """One exchange at a time. `deadline` is the loop time when `expire()` is due; `on_free` is told when it may be used
    again, `on_lost` when it is gone. `used` tells whether it has served an exchange."""

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
        self.used = False
        self._outbox = outbox_of(loop)
        self._on_free = on_free
        self._on_lost = on_lost
        self._response_timeout_seconds = response_timeout_seconds
        self._idle_timeout_seconds = idle_timeout_seconds
        # The body's pieces go straight into this list, which the response shares: engines send each token as a chunk.
        self._parts: list[bytes] = []
        self.on_body = self._parts.append
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport
        self._writing_paused = False
        self.reading_paused = False
        # Per exchange
        self._response: HttpResponse | None = None
        self._unsent = memoryview(b"")
        self._start = b""  # of the answer, as far as it says which protocol this is
        self._interim = False
        self._interims = False
        self._framed = False
        self._reusable = False
        self._idle_bytes = 0
        self._read_bytes = 0
        # Of the last answer that came in one piece: how it began, and its headers but for the length.
        self._repeated = Repeated()
        self._headers: list[tuple[bytes, bytes]] = []

    async def exchange(self, head: bytes, body: bytes) -> HttpResponse:
        """Sends one request and returns its response once the headers are there; raises as HttpClient.request does."""
        transport = self._transport
        if self.lost or transport.is_closing():
            raise NoAnswer("The connection was closed at once.")
        response = self._response = HttpResponse(self, self._parts)
        self._outbox.exchanges += 1
        self._start = b""
        self._reusable = False
        if body or not self.used:
            # A server that does not want a new connection ends it now, and tells why to whoever has asked before.
            self._outbox.flush()
            transport.write(head)
        else:
            self._outbox.write(transport, head)
        if body:
            self._unsent = memoryview(body)
            self._send_on()
        try:
            while not response.status:
                if response.failure is not None:
                    raise response.failure
                self.deadline = self.loop.time() + self._response_timeout_seconds
                response.waiter = self.loop.create_future()
                await response.waiter
        except BaseException:
            self.release(response)
            raise
        self.deadline = inf
        return response

    async def wait(self, response: HttpResponse) -> None:
        """Until more of the body is there, or its end. Only while somebody waits here does the idle timeout run."""
        self.deadline = self.loop.time() + self._idle_timeout_seconds
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
        self._outbox.exchanges -= 1
        self._parts.clear()
        response.parts = []  # the other one will be the next response's
        transport = self._transport
        # A request that was not sent to its end would be continued into the next one.
        if self._reusable and not (self._unsent or transport.is_closing() or transport.get_write_buffer_size()):
            if self.reading_paused:
                self.resume()
            self.used = True
            self._on_free(self)
            return
        self._unsent = memoryview(b"")
        self.deadline = inf
        transport.abort()
        if not response.complete and response.failure is None:
            response.failure = BackendProtocolError("The response was closed before its end.")
            response.wake()

    def resume(self) -> None:
        """The reader has caught up."""
        self.reading_paused = False
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def is_closing(self) -> bool:
        """Whether it is of no more use."""
        return self._transport.is_closing()

    def close(self) -> None:
        """Ends it now, whatever it is doing."""
        self._fail(BackendProtocolError("The connection was closed by its owner."))

    def abandon(self, why: str) -> None:
        """Gives up waiting for an answer that has not begun; one that has goes on."""
        if self._response is not None and not self._response.status:
            self._fail(BackendProtocolError(why))

    def expire(self) -> None:
        """Its deadline has passed."""
        response = self._response
        if response is None or not response.status:
            message = f"No response within {self._response_timeout_seconds} s."
        else:
            message = f"No data within {self._idle_timeout_seconds} s."
        self._fail(BackendTimeout(message))

    def _waits(self) -> bool:
        """Whether there is a response that may still change."""
        response = self._response
        return response is not None and not response.complete and response.failure is None

    def _fail(self, error: BackendError) -> None:
        response = self._response
        if response is not None and not response.complete and response.failure is None:
            response.failure = error
            response.wake()
        self._reusable = False
        self.deadline = inf
        self._transport.abort()

    def _send_on(self) -> None:
        """The body, as far as the server takes it. An answer that says no ends the sending (RFC 9112 section 9.3)."""
        while self._unsent and not self._writing_paused and not self._transport.is_closing():
            if self._response is None or self._response.status >= 300:
                return
            piece, self._unsent = self._unsent[:_SLICE_BYTES], self._unsent[_SLICE_BYTES:]
            self._transport.write(piece)

    # -- asyncio.Protocol ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not isinstance: uvloop's transports have the methods, not the base class.
        self._transport = cast(asyncio.Transport, transport)

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        self._send_on()

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None or response.complete or response.failure is not None:
            # Nobody asked for it: the two sides no longer agree on where a message ends.
            self._reusable = False
            self._transport.abort()
            return
        if self._start:
            self._read(response, data)
        elif (body := self._repeated.body_in(data)) is not None:
            self._answer_again(response, body)
        else:
            self._read(response, data)
            self._learn(response, data)

    def _read(self, response: HttpResponse, data: bytes) -> None:
        pieces = len(self._parts)
        read_bytes = self._read_bytes = len(data)
        try:
            if not self._start:
                self._interims = self._framed = False
                self._idle_bytes = 0
            if self._start is not _HTTP_1_1:
                self._look_at_start(data)
            self._parser.feed_data(data)
        except (BackendProtocolError, httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._reusable = False
            if not response.complete:
                self._fail(_fault(error))
                return
        pieces = len(self._parts) - pieces
        if pieces:
            response.held_bytes += read_bytes + pieces * _PART_BYTES
        if response.held_bytes > HIGH_WATER_BYTES and not self.reading_paused and not self._transport.is_closing():
            self.reading_paused = True
            self._transport.pause_reading()
        # Endless headers, interim responses, chunk extensions and trailers all bring the body no further.
        self._idle_bytes = 0 if pieces else self._idle_bytes + read_bytes
        if self._idle_bytes > MAX_HEAD_BYTES and not response.complete:
            self._fail(BackendProtocolError(_TOO_LONG))
        if response.status:
            response.wake()

    def _learn(self, response: HttpResponse, data: bytes) -> None:
        if self._reusable and response.status == 200 and self._repeated.learn(data):
            self._headers = [header for header in response.headers if header[0] != b"content-length"]

    def _answer_again(self, response: HttpResponse, body: bytes) -> None:
        """What the parser would tell of a whole answer that begins as the last one did."""
        self._reusable = True
        response.status = 200
        response.headers = [*self._headers, (b"content-length", b"%d" % len(body))]
        if body:
            self._parts.append(body)
        response.complete = True
        response.wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._on_lost(self)
        self._reusable = False
        if exc is not None and self._waits() and (rest := unread(self._transport)):
            self.data_received(rest)
        response = self._response
        if response is None or not self._waits():
            return
        why = exc or "connection closed"
        if not self._start:
            response.failure = NoAnswer(f"The connection was closed before a response: {why}.")
        elif exc is None and response.status and not self._framed:
            response.complete = True  # its end was to be told by the end of the connection
        else:
            response.failure = BackendProtocolError(f"The response was cut short: {why}.")
        response.wake()

    # -- httptools' callbacks, all within data_received ----------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._response is None or self._response.complete:
            raise BackendProtocolError("Bytes after the end of the response.")

    def on_header(self, name: bytes, value: bytes) -> None:
        response = self._response
        if response is None:
            return
        name = name.lower()
        if name in _FRAMING:
            self._look_at_framing(response, name, value)
        if not response.status:  # else it is a trailer
            response.headers.append((name, value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        response = self._response
        if response is None:
            return
        headers = response.headers
        if len(headers) > MAX_HEADERS:
            raise BackendProtocolError(f"More than {MAX_HEADERS} headers.")
        # Heads in many reads are bounded by the bytes of these; in one read a body may follow, so it is added up.
        if self._read_bytes > MAX_HEAD_BYTES and sum(len(n) + len(v) + 4 for n, v in headers) > MAX_HEAD_BYTES:
            raise BackendProtocolError(_TOO_LONG)
        if self._interims and self._parser.get_http_version() != "1.1":
            raise BackendProtocolError("The response has another version than the one that announced it.")
        if 200 <= status < 600:
            response.status = status
        elif 100 <= status < 200 and not self._framed and self._start is _HTTP_1_1:
            self._interim = self._interims = True
            headers.clear()
        else:
            raise BackendProtocolError(f"It answered with status {status:03}, which cannot be understood here.")

    def on_message_complete(self) -> None:
        response = self._response
        if self._interim:
            self._interim = False
        elif response is not None:
            response.complete = True
            # In HTTP/1.0 llhttp lets keep-alive outweigh close; nobody needs such connections to be kept.
            self._reusable = self._parser.should_keep_alive() and self._start is _HTTP_1_1
            if response.status in _BODILESS and _claims_a_body(response):
                self._reusable = False

    # -- what llhttp lets pass -----------------------------------------------------------------------------------------

    def _look_at_start(self, data: bytes) -> None:
        """Raises BackendProtocolError for line breaks before the status line, HTTP/0.9, HTTP/2.0, RTSP and ICE."""
        start = self._start + data[: len(_HTTP_1_1) - len(self._start)]
        self._start = _HTTP_1_1 if start == _HTTP_1_1 else start
        if not _HTTP_1_1.startswith(start) and not _HTTP_1_0.startswith(start):
            raise BackendProtocolError(f"The response is not HTTP/1.1: it begins with {start!r}.")

    def _look_at_framing(self, response: HttpResponse, name: bytes, value: bytes) -> None:
        """Raises BackendProtocolError for anything but one Content-Length or one Transfer-Encoding: chunked."""
        if response.status or self._framed:
            raise BackendProtocolError("The response says twice where it ends.")
        self._framed = True
        # llhttp does not take a tab behind the word for a blank, and then knows no chunks.
        if name == b"transfer-encoding" and (value.strip(b" ").lower() != b"chunked" or self._start == _HTTP_1_0):
            raise BackendProtocolError(f"The response has a transfer coding other than chunked: {value[:50]!r}.")


def unread(transport: asyncio.BaseTransport) -> bytes:
    """What lies in the socket of a transport that has just failed. A server that refuses a request may close without
    having read it; sending then fails before its answer is read."""
    pieces: list[bytes] = []
    socket = transport.get_extra_info("socket")
    with contextlib.suppress(OSError):  # the usual end: nothing more, or the error that we know of
        while socket is not None and len(pieces) < 4 and (piece := os.read(socket.fileno(), _SLICE_BYTES)):
            pieces.append(piece)
    return b"".join(pieces)


def _claims_a_body(response: HttpResponse) -> bool:
    """A server that sends one where none may be would have it read as the next answer."""
    return any(name in _FRAMING and value.strip(b"0 \t") for name, value in response.headers)


def _fault(error: Exception) -> BackendProtocolError:
    """Our own refusals come wrapped by the parser."""
    cause = error if isinstance(error, BackendProtocolError) else error.__context__
    if isinstance(cause, BackendProtocolError):
        return cause
    return BackendProtocolError(f"The response is not HTTP/1.1: {error or type(error).__name__}.")
