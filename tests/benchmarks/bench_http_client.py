"""The upstream client against httpx: requests/s and CPU time per request, on one tiny server in a process of its own.

Run: python -m tests.benchmarks.bench_http_client [--seconds 2] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path

import httpx
import uvloop

from backends.http import HttpClient

BODY = b'{"id":"chatcmpl-1","choices":[{"message":{"content":"%s"}}]}' % (b"x" * 540)
EVENT = b'data: {"id":"chatcmpl-1","choices":[{"delta":{"content":" word"}}]}\n\n'
EVENTS = 64
REQUEST = b'{"model":"demo","messages":[{"role":"user","content":"Hello"}]}'
HEADERS = ((b"content-type", b"application/json"), (b"x-request-id", b"req-1"))

Call = Callable[[str], Awaitable[int]]


class Server(asyncio.Protocol):
    """Answers /whole with 600 bytes of JSON and /stream with 64 events, each in a chunk and a write of its own."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio.Protocol."""
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]  # what asyncio promises

    def data_received(self, data: bytes) -> None:
        """asyncio.Protocol. httpx sends a request's head and body in two pieces, ours in one."""
        if data.startswith(b"POST "):
            self._whole = data.startswith(b"POST /whole")
        if not data.endswith(REQUEST):
            return
        if self._whole:
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(BODY)
            self._transport.write(head + BODY)
            return
        self._transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for _ in range(EVENTS):
            self._transport.write(b"%x\r\n%s\r\n" % (len(EVENT), EVENT))
        self._transport.write(b"0\r\n\r\n")


def serve(path: str, pipe: Connection) -> None:
    """The server process, until it is terminated."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        unix = await loop.create_unix_server(Server, path)
        tcp = await loop.create_server(Server, "127.0.0.1", 0)
        pipe.send(tcp.sockets[0].getsockname()[1])
        await asyncio.gather(unix.serve_forever(), tcp.serve_forever())

    uvloop.run(main())


@contextlib.asynccontextmanager
async def ours(address: str) -> AsyncIterator[Call]:
    """Calls with HttpClient."""
    client = HttpClient(address)

    async def call(path: str) -> int:
        response = await client.request("POST", path, HEADERS, REQUEST)
        try:
            return sum([len(chunk) async for chunk in response.chunks])
        finally:
            response.close()

    try:
        yield call
    finally:
        await client.aclose()


@contextlib.asynccontextmanager
async def with_httpx(address: str) -> AsyncIterator[Call]:
    """Calls with httpx, streaming as a relay would."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    uds = address.removeprefix("unix:") if address.startswith("unix:") else None
    base = "http://localhost" if uds else address
    transport = httpx.AsyncHTTPTransport(uds=uds, limits=limits)
    async with httpx.AsyncClient(transport=transport, base_url=base, timeout=60.0) as client:

        async def call(path: str) -> int:
            async with client.stream("POST", path, headers=list(HEADERS), content=REQUEST) as response:
                return sum([len(chunk) async for chunk in response.aiter_raw()])

        yield call


async def measure(call: Call, path: str, clients: int, seconds: float) -> tuple[float, float]:
    """(requests/s, CPU µs per request of this process)."""
    expected = len(BODY) if path == "/whole" else EVENTS * len(EVENT)
    done = 0
    end = time.perf_counter() + seconds

    async def one() -> None:
        nonlocal done
        while time.perf_counter() < end:
            assert await call(path) == expected
            done += 1

    await call(path)
    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(one() for _ in range(clients)))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return done / wall, cpu / done * 1e6


async def compare(addresses: dict[str, str], seconds: float, rounds: int) -> None:
    """Prints the medians of interleaved rounds."""
    print("| transport | answer | clients | client | requests/s | CPU µs / request |\n|---|---|---|---|---|---|")
    for transport, address in addresses.items():
        for path, clients in (("/whole", 1), ("/whole", 64), ("/stream", 64)):
            figures: dict[str, list[tuple[float, float]]] = {"ours": [], "httpx": []}
            for _ in range(rounds):
                for name, make in (("ours", ours), ("httpx", with_httpx)):
                    async with make(address) as call:
                        figures[name].append(await measure(call, path, clients, seconds))
            for name, rows in figures.items():
                rate, cpu = (statistics.median(column) for column in zip(*rows, strict=True))
                print(f"| {transport} | {path[1:]} | {clients} | {name} | {rate:,.0f} | {cpu:,.0f} |", flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="per client and round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "bench.sock"))
        here, there = multiprocessing.Pipe()
        server = multiprocessing.get_context("spawn").Process(target=serve, args=(path, there), daemon=True)
        server.start()
        try:
            port = here.recv()
            addresses = {"TCP": f"http://127.0.0.1:{port}", "Unix": f"unix:{path}"}
            uvloop.run(compare(addresses, arguments.seconds, arguments.rounds))
        finally:
            server.terminate()
            server.join()


if __name__ == "__main__":
    main()
