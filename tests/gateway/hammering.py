"""Forks workers that all want one key's requests while its windows pass, and prints what each got. Run by
test_ratelimit_store.py.

A process of its own, because forking belongs into a process without threads.
"""

from __future__ import annotations

import json
import os
import sys
import time

from gateway.errors import RateLimited
from gateway.limits import Limits
from gateway.ratelimit import RateLimiter
from gateway.ratelimit_records import DAY, REQUESTS
from gateway.ratelimit_store import LimitStore
from tests.gateway.metering import Meter

# The clock goes so much faster than ours.
SPEED = 60
# By that clock: two windows begin, and have time to be used up.
SECONDS = 118


class FastClock:
    """Remembers what it said last."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        self.now_ns = time.monotonic_ns() * SPEED
        return self.now_ns


def hammer(limiter: RateLimiter, clock: FastClock, meter: Meter) -> list[tuple[int, int]]:
    """Reserves ten tokens at a time, and settles every second one for half of them. Gives what was admitted: when, by
    the limiter's clock, and how many tokens it kept."""
    admitted: list[tuple[int, int]] = []
    end_ns = clock() + SECONDS * 10**9
    while clock.now_ns < end_ns:
        try:
            reservation = limiter.reserve(meter.principal, 10)
        except RateLimited:
            continue
        admitted.append((clock.now_ns, 10 if len(admitted) % 2 else 5))
        reservation.settle(admitted[-1][1])
    return admitted


def main(workers: int, requests: int, tokens: int) -> None:
    """One line of JSON per worker, then one with what is counted of requests and tokens."""
    store = LimitStore(8, workers)
    meter = Meter(Limits(requests_per_minute=requests, tokens_per_minute=tokens, concurrent=workers), store)
    gate_read, gate_write = os.pipe()
    children, pipes = [], []
    for worker in range(workers):
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(gate_write)
            os.read(gate_read, 1)
            clock = FastClock()
            admitted = hammer(RateLimiter(store, worker, clock), clock, meter)
            with open(write_end, "w", encoding="utf-8") as results:
                results.write(json.dumps(admitted))
            os._exit(0)
        os.close(write_end)
        children.append(child)
        pipes.append(read_end)
    os.close(gate_write)
    for pipe in pipes:
        with open(pipe, encoding="utf-8") as results:
            sys.stdout.write(results.read() + "\n")
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    base = meter.principal.slot.base
    sums = list(store.words[base + REQUESTS : base + DAY])
    _, requests_parts, tokens_parts, _ = store.rings(base, meter.principal.limits)
    running = store.running(base)
    sys.stdout.write(
        json.dumps({"sums": sums, "parts": [sum(requests_parts), sum(tokens_parts)], "running": running}) + "\n"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
