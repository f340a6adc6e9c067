"""One inference POST on a client's connection: its body as it arrives, its answer as it leaves, who ended it and why.

What ASGI's receive and send are for other requests, without their messages, tasks and copies (docs/performance.md).
Neighbours: listener.py (feeds it), relay.py (serves it), deadline.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from backends.errors import BackendProtocolError
from gateway.again import Head
from gateway.bodies import SMALL_BYTES, expects_continue
from gateway.errors import ClientGone, TooManyBodies

if TYPE_CHECKING:
    from gateway.listener import ClientConnection

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Call:
    """A request with that `head`. Everything here happens on the connection's event loop.

    Until `settle()` the client's leaving or a passed deadline cancels the serving task; `verdict` says why.
    """

    # What calls keep for most of their life stays with the class: setting it each time cost half a microsecond.
    verdict: Exception | None = None
    # The names that uvicorn uses for the same things of its own requests.
    more_body = True
    response_started = response_complete = disconnected = False

    servant: asyncio.Task[None] | None = None  # the task that is about to serve it, or does
    _task: asyncio.Task[None] | None = None  # the same, between `begin` and `end`
    _settled = False
    _too_late: Callable[[], Exception | None] | None = None
    # The request
    _size = _limit = 0
    _key = b""  # whose it counts as
    _discarding = _crowded_out = False
    held = 0  # what the connection's Bodies count of it
    _waiter: asyncio.Future[None] | None = None
    # The answer
    _head = b""
    _chunked = False
    _announced: int | None = None

    def __init__(self, connection: ClientConnection, head: Head) -> None:
        self.head = head
        self.keep_alive = head.keep_alive
        self._connection = connection
        self._parts: list[bytes] = []

    # -- told by the connection ---------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """The next piece of the body."""
        self._size += len(data)
        if self._discarding:
            return
        self._parts.append(data)
        if self._size > SMALL_BYTES:
            self._is_large()
        elif self._size > self._limit > 0:
            self._wake()

    def _is_large(self) -> None:
        if not self._limit:  # nobody reads it yet
            self._connection.flow.pause_reading()
            return
        bodies = self._connection.bodies
        bodies.count(self._key, self._size - self.held)
        self.held = self._size
        if not bodies.has_room(self._key, self.held):
            self._crowded_out = self._discarding = True
            self.let_go_of_body()
        if self._size > self._limit or self._crowded_out:
            self._wake()

    def body_complete(self) -> None:
        """The body has arrived whole."""
        self.more_body = False
        if self._waiter is not None:
            self._wake()

    def disconnect(self) -> None:
        """The client is gone, or nothing more can be understood of what it sends."""
        self.disconnected = True
        self._end(self._gone())

    @property
    def peer(self) -> str:
        """The address of the connection's other end; empty for a Unix socket."""
        client = self._connection.client
        return client[0] if client is not None else ""

    # -- used by whoever serves it ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """To be called by the task that serves this, which must also call `end`: from now on it may be cancelled."""
        self._task = self.servant
        flow = self._connection.flow
        if flow.read_paused:
            flow.resume_reading()

    async def whole_body(self, max_bytes: int, key: bytes) -> None:
        """Returns when the body is complete, longer than `max_bytes` (whatever Content-Length said) or cut off."""
        if not self._size and not self.disconnected and expects_continue(self.head.headers, self.head.http_version):
            self._connection.transport.write(_CONTINUE)
        self._connection.flow.resume_reading()
        self._read_for(key, max_bytes)
        while self.more_body and self._size <= max_bytes and not self.disconnected and not self._crowded_out:
            await self._change()

    def take_body(self, max_bytes: int, key: bytes) -> bytes | None:
        """The body, None if it is longer than `max_bytes`; to be let go of. Raises ClientGone and TooManyBodies."""
        if self.disconnected:
            raise self._gone()
        if self._size > SMALL_BYTES and not self._crowded_out:
            self._read_for(key, max_bytes)  # all of it may have come at once
        if self._crowded_out:
            raise TooManyBodies("Too many large requests are being read. Try again in a moment.")
        if self._size > max_bytes:
            return None
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        return body

    def let_go_of_body(self) -> None:
        """It is not in memory any more. Idempotent."""
        self._parts.clear()
        self._connection.bodies.count(self._key, -self.held)
        self.held = 0

    async def discard_body(self) -> None:
        """Swallows what the client still sends, to its end."""
        self._discarding = True
        self.let_go_of_body()
        self._connection.flow.resume_reading()
        while self.more_body and not self.disconnected:
            await self._change()

    def expect(self, seconds: float, too_late: Callable[[], Exception | None]) -> None:
        """Something has to happen every `seconds`, or the verdict is what `too_late` makes. None: not yet, it has said
        itself what it expects now."""
        self._too_late = too_late
        self._connection.deadline.expect(seconds, self._late)

    def progress(self) -> None:
        """Something happened."""
        self._connection.deadline.progress()

    def recover(self) -> Exception | None:
        """To be called on CancelledError: the verdict, with the cancellation taken back; None where it was not ours."""
        if self.verdict is not None and self._task is not None:
            self._task.uncancel()
        return self.verdict

    def settle(self) -> None:
        """The answer is complete or given up: from now on nothing cancels the serving task. Idempotent."""
        if self._settled:
            return
        self._settled = True
        self._too_late = None
        if not self.disconnected:
            self._connection.deadline.forget()

    def start(self, status: int, headers: bytes, content_bytes: int | None) -> None:
        """Makes the head. `headers` are whole lines; framing, Date and Connection are added here. Without
        `content_bytes` the answer is chunked, or ends with the connection for a client of HTTP/1.0."""
        self.response_started = True
        self._announced = content_bytes
        if content_bytes is not None:
            framing = b"content-length: %d\r\n" % content_bytes
        elif self.head.http_version == "1.0":
            framing = b""
        else:
            self._chunked = True
            framing = b"transfer-encoding: chunked\r\n"
        common = self._connection.common
        lines = common.lines()
        if common.ending:
            self.keep_alive = False
        end = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        self._head = b"".join((STATUS_LINE[status], lines, headers, framing, end))

    def flush(self) -> None:
        """Sends the head now, where it would otherwise go with the first bytes behind it."""
        if self._head and not self.disconnected:
            head, self._head = self._head, b""
            self._connection.transport.write(head)

    def write(self, data: bytes) -> None:
        """The next piece of the answer; `drain()` is due when `paused` is true afterwards. Silent once the client has
        left. Raises BackendProtocolError for more bytes than were announced."""
        if self.disconnected or not data:
            return
        head, self._head = self._head, b""
        if self._chunked:
            data = b"%b%x\r\n%b\r\n" % (head, len(data), data)
        else:
            if self._announced is not None:
                if len(data) > self._announced:
                    raise BackendProtocolError("The answer is longer than its Content-Length.")
                self._announced -= len(data)
            if head:
                data = head + data
        self._connection.transport.write(data)

    @property
    def paused(self) -> bool:
        """Whether the client reads more slowly than we write."""
        return self._connection.flow.write_paused

    async def drain(self) -> None:
        """Until the client has read enough."""
        await self._connection.flow.drain()

    def finish(self, last: bytes = b"") -> None:
        """Writes the last piece and the end. Raises BackendProtocolError when fewer came than were announced."""
        if self.disconnected:
            return
        if self._chunked:
            if last:
                self.write(last)
            self.flush()
            self._connection.transport.write(b"0\r\n\r\n")
        else:
            self.write(last)
            if self._head:
                self.flush()
            if self._announced:
                raise BackendProtocolError("The answer is shorter than its Content-Length.")
        if not self._settled:
            self.settle()
        self.response_complete = True
        if not self.keep_alive:
            self._connection.transport.close()
        self._connection.on_response_complete()

    def end(self) -> None:
        """The serving task is over. An answer without its end is cut: the connection closes short of it, which every
        client reports."""
        if not self._settled:
            self.settle()
        if self.held:
            self.let_go_of_body()
        if self._task is not None:
            self._connection.tasks.discard(self._task)
            self._task = self.servant = None
        if not self.response_complete and not self.disconnected:
            self._connection.transport.close()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _read_for(self, key: bytes, max_bytes: int) -> None:
        self._key, self._limit = key, max_bytes
        if self._size > SMALL_BYTES:
            self._is_large()

    async def _change(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _gone(self) -> ClientGone:
        return ClientGone(
            f"The client left {'while sending its request' if self.more_body else 'before its answer was complete'}."
        )

    def _late(self) -> None:
        if self._too_late is not None and (verdict := self._too_late()) is not None:
            self._end(verdict)

    def _end(self, verdict: Exception) -> None:
        if self._settled or self._task is None:
            self._wake()
        elif self.verdict is None:
            self.verdict = verdict
            self._task.cancel()


def disconnect(cycle: RequestResponseCycle | Call) -> None:
    """The same for a call and for one of uvicorn's own requests."""
    if isinstance(cycle, Call):
        cycle.disconnect()
    else:
        cycle.disconnected = True
        cycle.message_event.set()
