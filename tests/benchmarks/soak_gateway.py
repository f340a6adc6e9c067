"""The gateway for a long time and against rude clients: nothing grows, nothing is left, nothing fails.

    python -m tests.benchmarks.soak_gateway --minutes 30

Three parts, each against a gateway of its own with keys, limits, metrics and access log: 10,000 clients that leave in
the middle; one that reads a stream of a gigabyte slowly; half of what the gateway can do, for minutes. Linux only.
Exits 1 when something is left. Neighbours: peers_run.py (the mock, the gateway, the load generator).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import statistics
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx

from tests.benchmarks.peers import PEERS, UPSHIFT
from tests.benchmarks.peers_run import HOST, Contestant, Mock, measure, resident_bytes
from tests.benchmarks.peers_workload import WORKLOADS, body, request_bytes

LEAVERS = 10_000
LEAVERS_AT_ONCE = 100
STREAM_BYTES = 1 << 30
SLOW_SECONDS = 20.0
SLICE_SECONDS = 30.0
MIB = 1 << 20
_CHUNK = b"data: " + b"x" * 16_376 + b"\n\n"
# For whoever looks whether the model is there; it passes for a chat as well.
_MODELS = b'{"object": "list", "data": [{"id": "bench"}]}'


def descriptors(pid: int) -> int:
    """Open files of a process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def sample(contestant: Contestant, name: str) -> float:
    """The sum of a metric's samples."""
    url = f"http://{HOST}:{contestant.port}/metrics"
    lines = httpx.get(url, headers=contestant.headers, timeout=10).raise_for_status().text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name}{{", f"{name} ")))


async def leave(contestant: Contestant, pick: random.Random, gate: asyncio.Semaphore) -> None:
    """One client that connects, gets as far as it likes and goes."""
    sent = request_bytes(contestant.port, body(WORKLOADS["hold"]), contestant.headers)
    async with gate:
        reader, writer = await asyncio.open_connection(HOST, contestant.port)
        writer.write(sent[: pick.choice((0, 10, len(sent) // 2, len(sent), len(sent), len(sent)))])
        with suppress(TimeoutError, ConnectionError):
            await asyncio.wait_for(reader.read(pick.choice((1, 400, 2000))), pick.choice((0.001, 0.02, 0.1)))
        if pick.random() < 0.5:
            writer.transport.abort()
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def leavers(contestant: Contestant) -> list[str]:
    """LEAVERS clients, LEAVERS_AT_ONCE at a time."""
    pid, pick, gate = contestant.pids[0], random.Random(7), asyncio.Semaphore(LEAVERS_AT_ONCE)
    # One round before counting: pools and caches have their size then.
    await asyncio.gather(*(leave(contestant, pick, gate) for _ in range(LEAVERS_AT_ONCE)))
    await settled(contestant)
    files, memory = descriptors(pid), resident_bytes([pid])
    await asyncio.gather(*(leave(contestant, pick, gate) for _ in range(LEAVERS)))
    await settled(contestant)
    # Idle connections to the engine are closed after seconds, not at once.
    await asyncio.sleep(6)
    left, grown = descriptors(pid) - files, resident_bytes([pid]) - memory
    cancelled = sample(contestant, "upshift_cancelled_total")
    print(f"{LEAVERS} leavers: descriptors {left:+}, memory {grown / MIB:+.1f} MiB, {cancelled:.0f} counted as left")
    return [f"{left} descriptors are left"] if left > 0 else []


async def settled(contestant: Contestant, seconds: float = 30) -> None:
    """Until nothing is in flight. Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        # Another process's gauge can only be polled.
        while await asyncio.to_thread(sample, contestant, "upshift_in_flight"):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def giant(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An engine that says STREAM_BYTES to whoever wants a stream, as fast as they are read."""
    if b'"stream":true' not in await reader.read(1 << 16):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n")
        writer.write(b"content-length: %d\r\n\r\n%b" % (len(_MODELS), _MODELS))
        writer.close()
        return
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    framed = b"%x\r\n%b\r\n" % (len(_CHUNK), _CHUNK)
    with suppress(ConnectionError):
        writer.write(head)
        for _ in range(STREAM_BYTES // len(_CHUNK)):
            writer.write(framed)
            await writer.drain()
        done = b"data: [DONE]\n\n"
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(done), done))
        await writer.drain()
    writer.close()


class Engine:
    """What Contestant needs to know of an upstream."""

    def __init__(self, port: int) -> None:
        self.port = port


async def slow_reader(port: int, headers: dict[str, str], pid: int) -> list[str]:
    """Reads a little each second, then the rest at once; the gateway's memory must not follow the engine."""
    reader, writer = await asyncio.open_connection(HOST, port, limit=64 * 1024)
    writer.write(request_bytes(port, body(WORKLOADS["burst"]), headers))
    before, most, got = resident_bytes([pid]), 0, 0
    began = time.monotonic()
    while time.monotonic() - began < SLOW_SECONDS:
        got += len(await reader.read(64 * 1024))
        most = max(most, resident_bytes([pid]))
        await asyncio.sleep(0.2)
    slowly = got
    last = b""
    while piece := await reader.read(1 << 20):
        got += len(piece)
        last = (last + piece)[-64:]
        most = max(most, resident_bytes([pid]))
        if last.endswith(b"0\r\n\r\n"):
            break
    writer.close()
    grown = most - before
    parts = f"{slowly / MIB:.0f} MiB in {SLOW_SECONDS:.0f} s, {got / MIB:.0f} in all"
    print(f"slow reader: {parts}, memory {grown / MIB:+.1f} MiB", flush=True)
    problems = [] if b"[DONE]" in last else ["the giant stream was cut"]
    return [*problems, f"memory grew by {grown / MIB:.0f} MiB"] if grown > 8 * MIB else problems


def steady(contestant: Contestant, mock: Mock, minutes: float) -> list[str]:
    """JSON and streams in turn at half of what the gateway can do, with its memory after each slice."""
    parts = {"port": contestant.port, "pids": contestant.pids, "headers": contestant.headers}
    full = measure(WORKLOADS["json"], mock, **parts, seconds=5.0, warmup_seconds=2.0)  # type: ignore[arg-type]
    rate = round(full.requests / full.seconds / 2)
    half = WORKLOADS["latency"]
    half = type(half)(half.name, half.title, ("--connections", "64", "--rate", str(rate)))
    memory: list[float] = []
    requests, errors = 0, 0
    until = time.monotonic() + minutes * 60
    while time.monotonic() < until:
        for workload, seconds in ((half, SLICE_SECONDS * 0.8), (WORKLOADS["burst"], SLICE_SECONDS * 0.1)):
            window = measure(workload, mock, **parts, seconds=seconds, warmup_seconds=0.5)  # type: ignore[arg-type]
            requests += window.requests
            errors += sum(window.errors.values())
        memory.append(resident_bytes(contestant.pids) / MIB)
        left = max(until - time.monotonic(), 0) / 60
        print(
            f"steady: {requests} requests, {errors} errors, {memory[-1]:.1f} MiB, {left:.1f} min to go", file=sys.stderr
        )
    third = max(len(memory) // 3, 1)
    early, late = statistics.mean(memory[:third]), statistics.mean(memory[-third:])
    print(
        f"steady: {minutes:g} min at {rate}/s, {requests} requests, {errors} errors, "
        f"memory {early:.1f} MiB in the first third, {late:.1f} in the last"
    )
    problems = [f"{errors} errors"] if errors else []
    return [*problems, "memory grew"] if late - early > 2 else problems


async def rude(mock: Mock) -> list[str]:
    """The two parts with clients of our own."""
    with Contestant(PEERS[UPSHIFT], Path(), mock, _last_core()) as contestant:
        problems = await leavers(contestant)
    server = await asyncio.start_server(giant, HOST, 0)
    engine = Engine(server.sockets[0].getsockname()[1])
    async with server:
        # Its readiness check is a chat, which this engine answers with a stream without end: start it from a thread.
        contestant = Contestant(PEERS[UPSHIFT], Path(), engine, _last_core())  # type: ignore[arg-type]
        await asyncio.to_thread(contestant.__enter__)
        try:
            problems += await slow_reader(contestant.port, contestant.headers, contestant.pids[0])
        finally:
            contestant.__exit__(None, None, None)
    return problems


def _last_core() -> int:
    return max(os.sched_getaffinity(0))


def main() -> int:
    """Prints a line per part."""
    parser = argparse.ArgumentParser(description="The gateway for a long time and against rude clients.")
    parser.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args()
    core = _last_core()
    os.sched_setaffinity(0, os.sched_getaffinity(0) - {core} or {core})
    with Mock() as mock:
        problems = asyncio.run(rude(mock))
        if options.minutes:
            with Contestant(PEERS[UPSHIFT], Path(), mock, core) as contestant:
                problems += steady(contestant, mock, options.minutes)
    for problem in problems:
        print(f"soak: {problem}", file=sys.stderr)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
