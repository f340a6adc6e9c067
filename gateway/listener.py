"""One client connection: uvicorn's httptools protocol, which serves the inference POSTs itself and without ASGI.

Every other request goes on to the ASGI application as uvicorn does it. Bytes and time of a request's head, and the
number of connections, are limited while they arrive, before any of our other code runs; what cannot be parsed is
refused in JSON. Neighbours: server.py (hands this to uvicorn), call.py (one inference POST), dataplane.py (the front).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from backends.base import Operation
from gateway.again import Head, LastHead, parsed
from gateway.auth import CERTIFICATE
from gateway.bodies import Bodies
from gateway.call import Call, disconnect
from gateway.crowd import Crowd
from gateway.dataplane import INFERENCE, DataPlane, Front
from gateway.deadline import Deadline
from gateway.head import CommonHeaders
from gateway.lastcall import LAST_CALL_SECONDS, has_unread
from gateway.outgoing import Outgoing
from gateway.refusal import refusal
from gateway.servant import Servant
from gateway.target import operation_at, without_upgrade
from gateway.tls import names_in

if TYPE_CHECKING:
    import asyncio

    from uvicorn._types import ASGI3Application

MAX_HEAD_BYTES, MAX_PIPELINED = 64 * 1024, 8
HEAD_TIMEOUT_SECONDS = 20.0
# Longer than the idle time of the load balancers in front (60 s is usual): the side that may reuse a connection
# should be the one that closes it.
KEEP_ALIVE_SECONDS = 75.0
# How long a refused client may go on sending, a last answer be unread, one of the control plane take with its reading.
LINGER_SECONDS, UNREAD_SECONDS, CONTROL_SECONDS = 1.0, 20.0, 60.0

_PATHS = {path.encode(): operation for path, operation in INFERENCE.items()}
_FRAMING = frozenset((b"content-length", b"transfer-encoding", b"connection", b"upgrade", b"host"))


class _Refused(Exception):
    """Raised inside the parser, which wraps it in a parser error."""


class ClientConnection(HttpToolsProtocol):
    """`front`, `paths`, `max_connections`, `crowd` and `bodies` are set by `connection_class`."""

    front: DataPlane
    paths: Mapping[bytes, Operation]
    max_connections = 0
    crowd = Crowd()
    bodies = Bodies()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Per connection: whether its end has begun, what is answered now, and how much the last read brought.
        self.deadline = Deadline(self.loop)
        self._refused = False
        self._idle_seconds = KEEP_ALIVE_SECONDS
        self._running: RequestResponseCycle | Call | None = None
        self._servant = Servant(self.loop)
        self._read_bytes = 0
        self.common = CommonHeaders(self.server_state)
        self._certificate = b""
        self._last = LastHead()
        # Per request: where in it the bytes are, an upper bound of what came of its head, or since its body last grew,
        # and whether the rest of the head is waited for.
        self._in_head = True
        self._in_body = False
        self._head_bytes = 0
        self._head_expected = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = Outgoing(transport, self.loop)
        if len(self.connections) > self.max_connections or not self.crowd.admit(self, transport):
            self._refuse(503, "overloaded", "Too many connections.")
            return
        self._certificate = names_in(transport.get_extra_info("peercert"))
        self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self.deadline.close()
        self.connections.discard(self)
        self.crowd.leave(self)
        # With requests pipelined the running one is not the newest, which is the only one that uvicorn would tell.
        if self._running is not None and not self._running.response_complete:
            disconnect(self._running)
        self.pipeline.clear()
        self.flow.resume_writing()
        self._servant.close()
        self._running = None
        self.cycle = None  # type: ignore[assignment]
        self.parser = None  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        between = not (self._in_head or self._in_body or self._answering or self.flow.write_paused)
        if between and (body := self._last.body_in(data)) is not None:
            self._head_bytes = 0
            call = self._begin(self._last.head)
            call.feed(body)
            call.body_complete()
            return
        if not self._in_body and data.find(b"pgrade", 0, MAX_HEAD_BYTES) >= 0:
            data = without_upgrade(data)
        self._read_bytes = len(data)
        self._head_bytes += self._read_bytes
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserError:
            self._refuse_garbage()
            return
        except httptools.HttpParserUpgrade:
            # CONNECT the application refuses like every other wrong method. An offer whose word was cut in two by the
            # reads has been missed above: what follows would be read as requests, though it is this one's body.
            if self.parser.get_method() != b"CONNECT":
                self._refuse_garbage()
                return
        if between and isinstance(self.cycle, Call):
            self._last.keep(data, self.cycle.head)
        # Endless heads, chunk extensions and trailers.
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_garbage()
        elif self._in_head and not self._head_expected and not self._answering:
            self._expect_head()

    # -- httptools' callbacks -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._in_head = True
        self._head_bytes = self._read_bytes
        self.url = b""
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        # A read may hold a head and much of a body: only where both together are too long is it worth adding up.
        if self._head_bytes > MAX_HEAD_BYTES:
            self._head_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if self._head_bytes > MAX_HEAD_BYTES:
                raise _Refused
        self._in_head = self._head_expected = False
        self._in_body = True
        if self._certificate:
            self.headers.append((CERTIFICATE, self._certificate))
        operation = self.paths.get(self.url) or operation_at(self.url, self.paths)
        if operation is not None and self.parser.get_method() == b"POST":
            self._begin(parsed(self.parser, operation, self.headers))
        else:
            self._begin_asgi()
        self.headers, self._head_bytes = [], 0  # from now on trailers, which nobody reads
        # uvicorn stops reading when requests queue up, and then does not see the client leave.
        if 0 < len(self.pipeline) <= MAX_PIPELINED:
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        cycle = self.cycle
        (cycle.feed if isinstance(cycle, Call) else super().on_body)(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        if self.headers and any(name in _FRAMING for name, _ in self.headers):
            raise _Refused  # a trailer that says where its body ends
        (self.cycle.body_complete if isinstance(self.cycle, Call) else super().on_message_complete)()

    # -- answering -----------------------------------------------------------------------------------------------------

    def _begin(self, head: Head) -> Call:
        call = Call(self, head)
        busy = self._answering or self.flow.write_paused
        self.cycle = call  # type: ignore[assignment]
        if busy:
            self.flow.pause_reading()
            self.pipeline.appendleft((call, self.app))  # type: ignore[arg-type]
        else:
            self._start(call)
        return call

    def _begin_asgi(self) -> None:
        url, headers = self.url, self.headers
        super().on_message_begin()
        self.url, self.headers = url, headers
        self.expect_100_continue = (b"expect", b"100-continue") in headers
        self.scope["headers"] = headers
        super().on_headers_complete()

    def _start(self, call: Call) -> None:
        self._running = call
        # Until it says itself what it expects.
        self.deadline.forget()
        self.tasks.add(self._servant.begin(call, self.front.serve))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        if isinstance(cycle, Call):  # from the pipeline, in which uvicorn keeps requests of both kinds
            self._start(cycle)
            return
        self._running = cycle
        self.deadline.expect(CONTROL_SECONDS, self.transport.abort)
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """The next request may be answered. Told by calls and by uvicorn's own requests."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            if self._running is not None:  # else it is gone
                self._leave()
            return
        if self.flow.read_paused:
            self.flow.resume_reading()
        if self.pipeline and not self.flow.write_paused:
            self._start_asgi_task(*self.pipeline.pop())
        elif self.pipeline:  # nobody is answered again who has not read what there is
            self.deadline.expect(UNREAD_SECONDS, self.transport.abort)
        elif self._in_head:
            self._expect_head()
        else:
            self.deadline.expect(self._idle_seconds, self._leave)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.pipeline and (self._running is None or self._running.response_complete):
            self._start_asgi_task(*self.pipeline.pop())

    def shutdown(self) -> None:
        """uvicorn's: the drain has begun, idle connections close and others with their answer. Those whose client could
        not know, in a stream that began before or with a request that has just come, wait for one more."""
        if isinstance(self.cycle, Call) and self._answering and self.cycle.response_started:
            self._idle_seconds = LAST_CALL_SECONDS
        elif not self._answering and has_unread(self.transport):
            self.deadline.expect(LAST_CALL_SECONDS, self._leave)
        else:
            super().shutdown()

    def _leave(self) -> None:
        """Closes when everything is sent, and then at last without those who do not read."""
        self.transport.close()
        self.deadline.expect(UNREAD_SECONDS, self.transport.abort)

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    # -- refusing ------------------------------------------------------------------------------------------------------

    def _refuse_garbage(self) -> None:
        """What the parser refuses; in the middle of another answer a refusal would garble that one."""
        if self._answering and (self.pipeline or self.cycle.response_started):
            self.transport.abort()
            return
        if self._answering:
            # The body broke off in its framing: whoever reads it learns that no more will come, and stays silent.
            disconnect(self.cycle)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, "headers_too_large", f"The request's head is larger than {MAX_HEAD_BYTES} bytes.")
        else:
            self._refuse(400, "invalid_request", "This is not valid HTTP/1.1.")

    def _refuse(self, status: int, code: str, message: str) -> None:
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self.transport.write(refusal(status, code, message))
        # Closing with bytes unread would reset the connection, and the client would lose the answer.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.deadline.expect(LINGER_SECONDS, self._leave)

    def _expect_head(self) -> None:
        self._head_expected = True
        self.deadline.expect(HEAD_TIMEOUT_SECONDS, self._head_too_slow)

    def _head_too_slow(self) -> None:
        if self._head_bytes == 0:
            self._leave()
        else:
            self._refuse(408, "request_timeout", "The request's head did not arrive in time.")


def connection_class(
    front: Front, max_connections: int, crowd: Crowd | None = None, bodies: Bodies | None = None
) -> type[ClientConnection]:
    """The protocol class for a listener of `front` that holds at most `max_connections`, as many from each address as
    `crowd` says, and as much of request bodies as `bodies`. Calls are made only where the front serves them."""
    paths = _PATHS if isinstance(front, DataPlane) else {}
    members = {"front": front, "paths": paths, "max_connections": max_connections}
    members |= {"crowd": crowd or Crowd(), "bodies": bodies or Bodies()}
    return type("BoundedConnection", (ClientConnection,), members)
