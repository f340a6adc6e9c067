"""Forks workers that all want one key's requests, and prints what each got. Run by test_ratelimit_store.py.

A process of its own, because forking belongs into a process without threads.
"""

from __future__ import annotations

import json
import os
import sys

from gateway.errors import RateLimited
from gateway.limits import Limits
from gateway.ratelimit import RateLimiter
from gateway.ratelimit_store import DAY, REQUESTS, LimitStore
from tests.gateway.metering import Meter


def hammer(limiter: RateLimiter, meter: Meter, tries: int) -> dict[str, int]:
    """Reserves, and settles every second one for half its tokens. The clock stands still: nothing leaves."""
    counts = {"admitted": 0, "kept": 0, "running": 0}
    for number in range(tries):
        try:
            reservation = limiter.reserve(meter.principal, 10)
        except RateLimited:
            continue
        counts["admitted"] += 1
        if number % 2:
            reservation.settle(5)
            counts["kept"] += 5
        else:
            counts["kept"] += 10
            counts["running"] += 1
    return counts


def main(workers: int, limit: int, tries: int) -> None:
    """One line of JSON per worker, then one with what is counted of requests and tokens."""
    store = LimitStore(8, workers)
    meter = Meter(Limits(requests_per_minute=limit, tokens_per_minute=10 * limit, concurrent=10 * limit), store)
    read_end, write_end = os.pipe()
    gate_read, gate_write = os.pipe()
    children = []
    for worker in range(workers):
        child = os.fork()
        if child == 0:
            os.close(gate_write)
            os.read(gate_read, 1)
            counts = hammer(RateLimiter(store, worker, meter.clock), meter, tries)
            os.write(write_end, (json.dumps(counts) + "\n").encode())
            os._exit(0)
        children.append(child)
    os.close(write_end)
    os.close(gate_write)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    with open(read_end, encoding="utf-8") as results:
        sys.stdout.write(results.read())
    for worker in range(workers):
        store.forget_worker(worker)
    base = store.base(meter.principal.slot)
    sums = list(store.words[base + REQUESTS : base + DAY])
    _, requests, tokens, _ = store.rings(base, meter.principal.limits)
    sys.stdout.write(json.dumps({"sums": sums, "parts": [sum(requests), sum(tokens)]}) + "\n")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
