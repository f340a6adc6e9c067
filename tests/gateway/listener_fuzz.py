"""Requests gone wrong at random, sent to the whole gateway without sockets, and what must hold for each.

Nothing is raised or logged as unexpected, no answer is a 500, nothing is left running or reserved once the client is
gone, and no body reaches a backend that a second parser (h11) does not find in it. Deterministic for a seed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import h11
import uvicorn
from uvicorn.server import ServerState

from backends.base import Operation
from config.limits import LimitSettings, LimitsSettings
from config.schema import GgufSettings, ModelSettings, Settings
from gateway.app import create_app
from gateway.errors import InvalidBody
from gateway.intake import decode
from gateway.listener import connection_class
from tests.fakes import FakeBackend
from tests.gateway.running import body, request

_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
# Turns of the loop that an answer may take.
_TURNS = 300
_SECONDS = 20

_CHAT = json.dumps(body()).encode()
_STREAM = json.dumps(body(stream=True, stream_options={"include_usage": True})).encode()
_CHUNKED = b"%x;a=b\r\n%b\r\n0\r\nx-sum: 1\r\n\r\n" % (len(_CHAT), _CHAT)
_HEAD = b" HTTP/1.1\r\nhost: localhost\r\n\r\n"

SEEDS = [
    request(_CHAT),
    request(_STREAM),
    request(_CHAT) + request(_STREAM),
    request(_CHUNKED, "transfer-encoding: chunked"),
    request(_CHAT, f"content-length: {len(_CHAT)}", "expect: 100-continue"),
    request(_CHAT, f"content-length: {len(_CHAT)}", "authorization: Bearer x", "x-request-id: a-1"),
    request(_CHAT, f"content-length: {len(_CHAT)}", "upgrade: h2c", "connection: upgrade, http2-settings"),
    request(_CHAT, f"content-length: {len(_CHAT)}", "x-api-key: y", "connection: close", path="/v1/completions"),
    *(b"GET " + path + _HEAD for path in (b"/livez", b"/readyz?a=b", b"/metrics", b"/v1/models/fake", b"/%6divez")),
    *(method + b" /v1/chat/completions" + _HEAD for method in (b"HEAD", b"OPTIONS", b"DELETE", b"CONNECT", b"TRACE")),
    b"GET http://localhost/livez HTTP/1.0\r\n\r\n",
    b"OPTIONS *" + _HEAD,
]  # fmt: skip

# What mistakes and attacks are made of.
DICTIONARY = [
    *(bytes([byte]) for byte in b"\r\n\0 \t:;,=\"\\{}[]/%?#@059afHg-+\x0b\x7f\x80\xff"),
    *(b"\r\n", b"\r\n\r\n", b"\n\n", b"\r\n ", b"0\r\n\r\n", b"ffffffffffffffff", b"18446744073709551616", b"-1"),
    *(b"content-length: 0\r\n", b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n", b"chunked, ", b"gzip"),
    *(b"host: evil.example\r\n", b"host: localhost\r\n", b"origin: null\r\n", b"expect: 100-continue\r\n", b"/../"),
    *(b"connection: close\r\n", b"upgrade: websocket\r\n", b"content-type: text/plain\r\n", b"//", b"x" * 3000),
    *(b"[" * 300, b'"model":"fake",', b"NaN", b"1e999", b"\\ud800", b"\xef\xbb\xbf", b'"stream":1,', b"null", b"true"),
    *(b'"max_tokens":-1,', b'"n":999999999999999999999,', b'"Model":"x",', b'"stop":["a"],', b'"tools":{},', b"\xc3("),
]  # fmt: skip


class Broken(AssertionError):
    """Something that must hold does not; the message has the input."""


def mutated(source: random.Random) -> bytes:
    """A good request or two with up to five things wrong."""
    data = bytearray(source.choice(SEEDS))
    for _ in range(source.choice((0, 1, 1, 1, 2, 3, 5))):
        at = source.randrange(len(data) + 1)
        kind = source.randrange(8)
        if kind <= 2:
            data[at:at] = source.choice(DICTIONARY)
        elif kind == 3:
            del data[at : at + source.choice((1, 2, 5, 30))]
        elif kind == 4 and at < len(data):
            data[at] = source.randrange(256)
        elif kind == 5:
            data[at : at + 1] = source.choice(DICTIONARY)
        elif kind == 6:
            start = source.randrange(len(data) + 1)
            data[at:at] = data[start : start + source.choice((1, 10, 60))]
        else:
            other = source.choice(SEEDS)
            data[at:] = other[source.randrange(len(other)) :]
    return bytes(data)


class Wire:
    """A client's transport that keeps what the gateway writes."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closed = False
        self.ended = False

    def write(self, data: bytes) -> None:
        if self.ended:
            raise RuntimeError("Cannot call write() after write_eof()")  # as uvloop's does
        if not self.closed:
            self.written += data

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def pause_reading(self) -> None:
        """Nothing comes by itself."""

    def resume_reading(self) -> None:
        """Nothing comes by itself."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("192.0.2.1", 1) if name == "peername" else default


class Target:
    """A gateway to send inputs to, one after the other. `answers` counts them by status."""

    def __init__(self, backend: FakeBackend, make: Any, state: ServerState) -> None:
        self._backend = backend
        self._make = make
        self._state = state
        self._complaints: list[str] = []
        self.answers: dict[bytes, int] = {}
        handler = logging.Handler(logging.ERROR)
        handler.emit = self._complain  # type: ignore[method-assign]
        logging.getLogger().addHandler(handler)
        self._handler = handler

    def close(self) -> None:
        """No more inputs."""
        logging.getLogger().removeHandler(self._handler)

    def _complain(self, record: logging.LogRecord) -> None:
        self._complaints.append(record.getMessage())

    async def check(self, data: bytes, pieces: Sequence[bytes]) -> None:
        """Sends `data` in `pieces`, hangs up when nothing happens any more. Raises Broken."""
        wire, connection = Wire(), self._make()
        self._backend.requests.clear()
        try:
            connection.connection_made(wire)
            for piece in pieces:
                if not wire.closed:
                    connection.data_received(piece)
                await asyncio.sleep(0)
            await self._quiet()
            await asyncio.sleep(0)  # at its end this turn's answers leave
            connection.connection_lost(None)
            async with asyncio.timeout(_SECONDS):
                while self._state.tasks:
                    await asyncio.wait(self._state.tasks)
        except Exception as error:
            raise Broken(f"{type(error).__name__}: {error}\n{data!r}") from error
        self._judge(data, bytes(wire.written))

    async def _quiet(self) -> None:
        for _ in range(_TURNS):
            if not self._state.tasks:
                return
            await asyncio.sleep(0)

    def _judge(self, data: bytes, written: bytes) -> None:
        statuses = _STATUS.findall(written)
        for status in statuses:
            self.answers[status] = self.answers.get(status, 0) + 1
        if b"500" in statuses or self._complaints or (written and not _STATUS.match(written)):
            raise Broken(f"{written[:300]!r} {self._complaints}\n{data!r}")
        # One request may run at a time: a reservation that was not given back refuses the next one.
        if self._backend.open or self._state.connections or b"429" in statuses:
            raise Broken(f"something is left open\n{data!r}")
        served = [request.body for request in self._backend.requests]
        found = by_h11(data) if served else None
        if found is not None and not _in_order(served, [_for_an_engine(sent) for sent in found]):
            raise Broken(f"{served} was served, where h11 finds {found}\n{data!r}")


def _for_an_engine(sent: bytes) -> bytes:
    """What an engine gets of a body: of streams it is asked for more."""
    try:
        return decode(sent, Operation.CHAT, "").body
    except InvalidBody:
        return sent


def by_h11(data: bytes) -> list[bytes] | None:
    """The bodies of all requests that h11 finds; None where it finds fault."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(data)
    connection.receive_data(b"")
    bodies: list[bytes] = []
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                bodies.append(b"")
            elif isinstance(event, h11.Data):
                bodies[-1] += event.data
            elif isinstance(event, h11.EndOfMessage):
                connection.send(h11.Response(status_code=404, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE:
                    return bodies
                connection.start_next_cycle()
            else:
                return bodies
    except h11.RemoteProtocolError:
        return None


def _in_order(served: Sequence[bytes], found: Sequence[bytes]) -> bool:
    rest = iter(found)
    return all(any(one == other for other in rest) for one in served)


@asynccontextmanager
async def target() -> AsyncIterator[Target]:
    """A gateway with one model whose backend answers from memory. It has limits, so that every reservation is made and
    given back, and nobody meets those of requests."""
    model = ModelSettings(name="fake", gguf=GgufSettings(source="demo"))
    backend = FakeBackend()
    limit = LimitSettings(requests_per_minute=10**9, tokens_per_minute=10**8, concurrent=1)
    settings = Settings(models=(model,), limits=LimitsSettings(default=limit))
    app = create_app(settings, make_backends=lambda _: [backend])
    http = connection_class(app, 16)
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", lifespan="off", http=http)
    config.load()
    state = ServerState()
    found = Target(backend, lambda: http(config=config, server_state=state, app_state={}), state)
    try:
        yield found
    finally:
        found.close()
        await app.gateway.stop()
