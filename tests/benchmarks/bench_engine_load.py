"""The load generator: streamed chat requests over keep-alive connections, and what came back with its times.

It must be light, or it measures itself: asyncio with httptools and nothing else, and during a run every fragment is
only stored with its arrival time. Events are parsed after the clock has stopped. `Load.generator_cpu_ratio` shows
its share.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import httptools

_LOAD_TIMEOUT_SECONDS = 600


@dataclass(slots=True)
class Exchange:
    """One request on the wire. Times are of time.perf_counter; `fragments` are pieces of the body as they arrived;
    `backend` is the answer's x-upshift-backend."""

    sent_at: float = 0.0
    ended_at: float = 0.0
    status: int = 0
    fragments: list[tuple[float, bytes]] = field(default_factory=list)
    failure: str = ""
    backend: str = ""

    @property
    def body(self) -> bytes:
        return b"".join(data for _, data in self.fragments)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one streamed chat request gave. `error` is empty when it is as asked."""

    ttft_seconds: float
    prompt_tokens: int
    completion_tokens: int
    text: str
    error: str


@dataclass(frozen=True, slots=True)
class Load:
    """All answers of one run in the order of its requests. `generator_cpu_ratio` 1.0 would be a whole core."""

    answers: list[Answer]
    wall_seconds: float
    generator_cpu_ratio: float


class Client:
    """Keep-alive connection to one server, one request at a time."""

    def __init__(self, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._connection: _Connection | None = None

    async def exchange(self, message: bytes) -> Exchange:
        """Sends a whole HTTP request and waits for its whole answer. A failure is in the Exchange, not raised.

        llama-server promises keep-alive and closes after a stream all the same: a kept connection that ends without a
        byte of an answer is tried once more on a fresh one, on the same clock.
        """
        sent_at = time.perf_counter()
        exchange = Exchange()
        if self._connection is not None and not self._connection.closed:
            exchange = await self._connection.exchange(message, sent_at)
        if exchange.failure or not exchange.ended_at:
            if exchange.fragments:
                return exchange
            try:
                _, self._connection = await asyncio.get_running_loop().create_connection(
                    _Connection, self._host, self._port
                )
            except OSError as error:
                return Exchange(failure=f"cannot connect: {error}")
            exchange = await self._connection.exchange(message, sent_at)
        return exchange

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.closed = False
        self._transport: asyncio.Transport | None = None
        self._exchange = Exchange()
        self._parser: Any = None
        self._done: asyncio.Future[None] | None = None

    async def exchange(self, message: bytes, sent_at: float) -> Exchange:
        self._done = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._exchange = Exchange(sent_at)
        assert self._transport is not None
        self._transport.write(message)
        await self._done
        self._exchange.ended_at = time.perf_counter()
        return self._exchange

    def close(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio and httptools -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._end(f"not HTTP: {error}")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self._end(f"the connection ended before the answer did: {exc or 'closed'}")

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"x-upshift-backend":
            self._exchange.backend = value.decode()

    def on_body(self, data: bytes) -> None:
        self._exchange.fragments.append((time.perf_counter(), data))

    def on_message_complete(self) -> None:
        self._exchange.status = self._parser.get_status_code()
        if not self._parser.should_keep_alive():
            self.close()
        self._end("")

    def _end(self, failure: str) -> None:
        if self._done is not None and not self._done.done():
            self._exchange.failure = failure
            self._done.set_result(None)


async def run_load(
    host: str, port: int, bodies: Sequence[dict[str, Any]], concurrency: int, *, new_tokens: int
) -> Load:
    """POSTs all `bodies` to /v1/chat/completions, `concurrency` at a time, the next as soon as one ends."""
    pending = deque((number, request_bytes("POST", "/v1/chat/completions", body)) for number, body in enumerate(bodies))
    exchanges = [Exchange(failure="never sent") for _ in bodies]

    async def worker() -> None:
        client = Client(host, port)
        try:
            while pending:
                number, message = pending.popleft()
                exchanges[number] = await client.exchange(message)
        finally:
            client.close()

    cpu_started, started = time.process_time(), time.perf_counter()
    async with asyncio.timeout(_LOAD_TIMEOUT_SECONDS), asyncio.TaskGroup() as group:
        for _ in range(concurrency):
            group.create_task(worker())
    wall_seconds = time.perf_counter() - started
    cpu_seconds = time.process_time() - cpu_started
    return Load([read_answer(e, new_tokens) for e in exchanges], wall_seconds, cpu_seconds / wall_seconds)


async def get(host: str, port: int, path: str) -> Exchange:
    """One GET on a connection of its own."""
    client = Client(host, port)
    try:
        return await client.exchange(request_bytes("GET", path))
    finally:
        client.close()


def request_bytes(method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
    payload = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(payload)}\r\n\r\n".encode() + payload


def read_answer(exchange: Exchange, new_tokens: int) -> Answer:
    """Tokens come from the stream's usage. A server that sends none (llama_cpp.server) wrote `new_tokens` when it ended
    for "length", and one per chunk otherwise."""
    if exchange.failure or exchange.status != 200:
        detail = exchange.failure or f"status {exchange.status}: {exchange.body[:300].decode('utf-8', 'replace')}"
        return Answer(0.0, 0, 0, "", detail)
    events, first_at = _read_events(exchange)
    texts: list[str] = []
    usage: dict[str, Any] = {}
    reason = None
    for event in events:
        if "error" in event:
            return Answer(0.0, 0, 0, "", f"error in the stream: {event['error']}")
        usage = event.get("usage") or usage
        for choice in event.get("choices", ()):
            texts.append(choice["delta"].get("content") or "")
            reason = choice.get("finish_reason") or reason
    chunk_tokens = new_tokens if reason == "length" else sum(bool(text) for text in texts)
    completion_tokens = usage.get("completion_tokens", chunk_tokens)
    error = "" if completion_tokens == new_tokens else f"{completion_tokens} tokens instead of {new_tokens} ({reason})"
    if not exchange.body.rstrip().endswith(b"data: [DONE]"):
        error = "the stream did not end in [DONE]"
    ttft_seconds = (first_at or exchange.ended_at) - exchange.sent_at
    return Answer(ttft_seconds, usage.get("prompt_tokens", 0), completion_tokens, "".join(texts), error)


def _read_events(exchange: Exchange) -> tuple[list[dict[str, Any]], float | None]:
    """All events, and when the first one with text was complete."""
    events: list[dict[str, Any]] = []
    first_at = None
    buffer = b""
    for arrived_at, data in exchange.fragments:
        # llama_cpp.server separates by CRLF, the others by LF.
        *complete, buffer = (buffer + data).replace(b"\r\n", b"\n").split(b"\n\n")
        for raw in complete:
            payload = raw.removeprefix(b"data: ")
            if payload in {raw, b"[DONE]"}:
                continue  # a comment or a ping
            events.append(json.loads(payload))
            if first_at is None and _has_text(events[-1]):
                first_at = arrived_at
    return events, first_at


def _has_text(event: dict[str, Any]) -> bool:
    return any(choice["delta"].get("content") for choice in event.get("choices", ()))
