"""What limits at Redis cost a gateway per request: CPU of its own process, and the time a request waits for the answer.

Run as `python -m tests.benchmarks.bench_redis_limits`; takes about 20 seconds and starts a redis-server of its own on
loopback. With `--url` it asks another one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import uvloop

from config.redis import RedisSettings
from gateway.auth import Principal
from gateway.limits import Limits
from gateway.ratelimit import RateLimiter
from gateway.ratelimit_store import LimitStore
from gateway.replicas.limiter import SharedLimiter
from gateway.slot import Slot
from tests.redis_server import running_redis

# High enough that nothing is refused, so that every step is paid.
LIMITS = Limits(10**9, 10**9, 10**6)
KEY = Principal("a", None, None, LIMITS, Slot(b"a" * 32), None, b"a" * 32)


async def ask(limiter: SharedLimiter, requests: int, waits: list[float]) -> None:
    """One client: reserve and settle, one after the other."""
    for _ in range(requests):
        began = time.perf_counter()
        lease = await limiter.reserve(KEY, 600, "m")
        waits.append(time.perf_counter() - began)
        lease.settle(240)


async def measure(url: str, clients: int, requests: int, rounds: int) -> tuple[float, float, float]:
    """µs of CPU per request (least of the rounds), median and 99th percentile of the wait in µs."""
    limiter = SharedLimiter(RedisSettings(url=url, timeout_ms=1000))
    limiter.adopt(RateLimiter(LimitStore(8)), "closed", {})
    running = asyncio.create_task(limiter.run())
    await ask(limiter, 200, [])
    cpu: list[float] = []
    waits: list[float] = []
    for _ in range(rounds):
        began = time.process_time()
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(ask(limiter, requests // clients, waits))
        cpu.append((time.process_time() - began) / requests * 1e6)
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    waits.sort()
    return min(cpu), statistics.median(waits) * 1e6, waits[len(waits) * 99 // 100] * 1e6


@contextlib.contextmanager
def server(url: str | None) -> Iterator[str]:
    """`url`, or a server of our own."""
    if url is not None:
        yield url
        return
    with tempfile.TemporaryDirectory() as folder, running_redis(Path(folder)) as redis:
        yield redis.url


def main() -> None:
    """Prints a line per number of clients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url")
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    sys.stdout.write(f"{'clients':>8}{'CPU µs/request':>16}{'wait µs':>10}{'p99':>10}\n")
    with server(options.url) as url:
        for clients in (1, 16, 128):
            cpu, wait, slow = uvloop.run(measure(url, clients, options.requests, options.rounds))
            sys.stdout.write(f"{clients:>8}{cpu:>16.1f}{wait:>10.0f}{slow:>10.0f}\n")


if __name__ == "__main__":
    main()
