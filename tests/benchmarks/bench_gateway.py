"""What the gateway itself costs: requests/s and CPU per request against a null ASGI application, in one run.

Run as `python -m tests.benchmarks.bench_gateway`; takes about 25 seconds. The backend answers from memory, so
nothing but the gateway is measured; the server has a process of its own, whose CPU time counts, and the client another.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import sys
import time
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import uvicorn
import uvloop

from backends.base import BackendResponse, BackendState, InferenceRequest
from config.schema import GgufSettings, ModelSettings, Settings
from gateway.app import create_app
from gateway.bind import bind
from gateway.listener import connection_class
from gateway.log import AccessLog, writer
from tests.fakes import chat_body, chat_events

ANSWER = chat_body("word " * 80)
EVENTS = chat_events(*["word"] * 62)
MESSAGES = [{"role": "user", "content": "Tell me something about the weather of tomorrow. " * 6}]
_TICK_SECONDS = 1 / os.sysconf("SC_CLK_TCK")


class InstantBackend:
    """Answers at once, from memory."""

    name = "instant"
    state = BackendState.READY

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""

    async def send(self, request: InferenceRequest) -> BackendResponse:
        """The whole answer, or 64 events one by one."""
        if request.stream:
            return BackendResponse(200, b"text/event-stream", None, _events(), _nothing)
        return BackendResponse(200, b"application/json", len(ANSWER), _events(), _nothing, ANSWER)


async def _events() -> AsyncIterator[bytes]:
    for event in EVENTS:
        yield event


def _nothing() -> None:
    return


async def null_app(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body and answers the same bytes: the floor under every ASGI application on this server."""
    if scope["type"] == "lifespan":
        for _ in range(2):
            kind = (await receive())["type"]
            await send({"type": f"{kind}.complete"})
        return
    body = (await receive())["body"]
    stream = b'"stream": true' in body
    kind = b"text/event-stream" if stream else b"application/json"
    headers = [(b"content-type", kind)] + ([] if stream else [(b"content-length", b"%d" % len(ANSWER))])
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for chunk in EVENTS if stream else ():
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"" if stream else ANSWER, "more_body": False})


def serve(variant: str, ready: Connection) -> None:
    """The server process: `variant` is null or gateway."""
    app: Any = null_app
    if variant == "gateway":
        model = ModelSettings(name="instant", gguf=GgufSettings(source="demo"))
        access_log = AccessLog(writer(Path(os.devnull).open("w")))  # noqa: SIM115 - until the process ends
        app = create_app(Settings(models=(model,)), make_backends=lambda _: [InstantBackend()], access_log=access_log)
    sockets = bind("127.0.0.1", 0)
    http = connection_class(app, 4096) if variant == "gateway" else "httptools"
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http=http,
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )
    ready.send(sockets[0].getsockname()[1])
    uvicorn.Server(config).run(sockets=sockets)


class Client(asyncio.Protocol):
    """One keep-alive connection that asks again as soon as it has an answer."""

    def __init__(self, request: bytes, end: bytes, answer_bytes: int) -> None:
        self._request = request
        self._end = end
        self._answer_bytes = answer_bytes
        self._buffer = b""
        self.answers = 0
        self.stopped = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._end:
            self._buffer = (self._buffer + data)[-16:] if len(data) < 16 else data[-16:]
            complete = self._buffer.endswith(self._end)
        else:
            self._buffer += data
            head = self._buffer.find(b"\r\n\r\n")
            complete = head >= 0 and len(self._buffer) >= head + 4 + self._answer_bytes
        if complete:
            self._buffer = b""
            self.answers += 1
            if not self.stopped:
                self.transport.write(self._request)


async def load(port: int, pid: int, stream: bool, connections: int, seconds: float) -> tuple[float, float]:
    """(requests/s, CPU µs of the server per request) under closed-loop load."""
    body = json.dumps({"model": "instant", "messages": MESSAGES, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
    head += f"accept: */*\r\nuser-agent: bench\r\nauthorization: Bearer none\r\ncontent-length: {len(body)}\r\n\r\n"
    end = b"0\r\n\r\n" if stream else b""
    loop = asyncio.get_running_loop()
    clients = [Client(head.encode() + body, end, len(ANSWER)) for _ in range(connections)]
    for client in clients:
        await loop.create_connection(lambda client=client: client, "127.0.0.1", port)  # type: ignore[misc]
    await asyncio.sleep(seconds / 4)  # warm
    before, cpu, began = sum(client.answers for client in clients), cpu_seconds(pid), time.perf_counter()
    await asyncio.sleep(seconds)
    answers = sum(client.answers for client in clients) - before
    took, cpu = time.perf_counter() - began, cpu_seconds(pid) - cpu
    for client in clients:
        client.stopped = True
        client.transport.close()
    return answers / took, cpu / answers * 1e6


def cpu_seconds(pid: int) -> float:
    """User plus system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_SECONDS


def measure(variant: str, stream: bool, connections: int, seconds: float) -> tuple[float, float]:
    """Starts a server, loads it, ends it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(variant, theirs), daemon=True)
    process.start()
    try:
        port, pid = ours.recv(), process.pid
        assert pid is not None
        return uvloop.run(load(port, pid, stream, connections, seconds))
    finally:
        process.terminate()
        process.join()


def main() -> None:
    """Prints one line per variant and kind of answer; rounds are interleaved."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--connections", type=int, default=32)
    options = parser.parse_args()
    print(f"{'variant':<10}{'answer':<10}{'requests/s':>12}{'CPU µs/request':>16}")
    for _ in range(options.rounds):
        for stream in (False, True):
            for variant in ("null", "gateway"):
                rate, cpu = measure(variant, stream, options.connections, options.seconds)
                kind = "64 events" if stream else "json"
                print(f"{variant:<10}{kind:<10}{rate:>12,.0f}{cpu:>16.1f}")
                sys.stdout.flush()


if __name__ == "__main__":
    main()
