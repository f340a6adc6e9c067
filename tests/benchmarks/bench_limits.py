"""What keys and limits cost per request, in µs and as a multiple of one SHA-256 of a key in the same round.

Run as `python -m tests.benchmarks.bench_limits`; takes about 15 seconds. The row "ask another process" is what a parent
process or a local Redis would cost at the very least: one message there and one back, with nothing done in between.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import itertools
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from config.limits import LimitSettings, LimitsSettings
from config.schema import Settings
from gateway.auth import Authenticator, Principal, principals
from gateway.cost import estimate_tokens
from gateway.errors import RateLimited
from gateway.keys import hash_of, new_key
from gateway.keysfile import KeyEntry, KeysFile
from gateway.limits import Limits
from gateway.ratelimit import RateLimiter
from gateway.ratelimit_store import LimitStore

KEYS = 1000
# High enough that nothing is refused, so that every step is paid.
LIMITS = LimitSettings(requests_per_minute=10**9, tokens_per_minute=10**9, concurrent=10**6)
Step = Callable[[], object]


class Gate:
    """One worker's view: a thousand keys, one of them asking."""

    def __init__(self, workers: int) -> None:
        key = new_key()
        self.headers = {b"host": b"x", b"authorization": b"Bearer " + key.encode()}
        self.store = LimitStore(workers=workers)
        entries = [KeyEntry(name="asking", hash=hash_of(key))]
        entries += [KeyEntry(name=f"k{n}", hash=hash_of(str(n))) for n in range(KEYS)]
        settings = Settings(limits=LimitsSettings(default=LIMITS))
        self.door = Authenticator(principals(settings, KeysFile(keys=tuple(entries)), self.store.slot_of))
        self.limiter = RateLimiter(self.store)
        self.principal: Principal = self.lookup()
        self.refused = Principal("refused", None, None, Limits(1), self.store.slot_of(b"\0" * 32), None, b"\0" * 32)
        self.limiter.reserve(self.refused, 600)

    def lookup(self) -> Principal:
        return self.door.principal(self.headers)

    def reserve(self) -> None:
        """The usual end: the answer was shorter than its cap."""
        self.limiter.reserve(self.principal, 600).settle(240)

    def later(self, seconds: int) -> Step:
        """The same so many seconds after the last one: what has left the windows meanwhile is to be forgotten."""
        times = itertools.count(time.monotonic_ns(), seconds * 10**9)
        limiter = RateLimiter(self.store, clock_ns=times.__next__)
        return lambda: limiter.reserve(self.principal, 600).settle(240)

    def overrun(self) -> None:
        """The rare end: the answer took more than was estimated, which needs the lock again."""
        self.limiter.reserve(self.principal, 600).settle(900)

    def refuse(self) -> None:
        """A request too many, with all that the refusal says."""
        with suppress(RateLimited):
            self.limiter.reserve(self.refused, 600)

    def whole(self) -> None:
        """Everything a request pays, its header lines included."""
        principal = self.door.principal(self.headers)
        reservation = self.limiter.reserve(principal, estimate_tokens(400, 500, 1, 256))
        reservation.header_lines()
        reservation.settle(240)

    def promise(self) -> None:
        """Lookup, reservation with its header lines, and settlement: what the budget of 8 µs is for."""
        principal = self.door.principal(self.headers)
        self.limiter.reserve(principal, 600).settle(240)


def steps(asked: socket.socket) -> dict[str, Step]:
    """What is measured, by name; the first is the baseline."""
    key, one, four = new_key().encode(), Gate(1), Gate(4)
    descriptor = os.memfd_create("locks")
    file = tempfile.TemporaryFile()  # noqa: SIM115 - until the process ends

    def lockf() -> None:
        fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, 7)
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, 7)

    def flock() -> None:
        fcntl.flock(file, fcntl.LOCK_EX)
        fcntl.flock(file, fcntl.LOCK_UN)

    def ask() -> None:
        asked.send(b"reserve 600")
        asked.recv(64)

    return {
        "SHA-256 of a key (baseline)": lambda: hashlib.sha256(key).digest(),
        f"key lookup, {KEYS} keys": one.lookup,
        "reserve + settle, one worker": one.reserve,
        "the same, each a second after the other": Gate(1).later(1),
        "the same, each ten seconds after the other": Gate(1).later(10),
        "the same, each two minutes after the other": Gate(1).later(120),
        "reserve + settle, 4 workers (lock)": four.reserve,
        "reserve + settle for more, 4 workers": four.overrun,
        "refusal, one worker": one.refuse,
        "lookup + reserve + settle, one worker": one.promise,
        "lookup + reserve + settle, 4 workers": four.promise,
        "all of it with the estimate, 4 workers": four.whole,
        "lock + unlock: lockf, one byte": lockf,
        "lock + unlock: flock, whole file": flock,
        "ask another process": ask,
    }


@contextmanager
def echo() -> Iterator[socket.socket]:
    """A process that sends back whatever it is sent."""
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        while message := theirs.recv(64):
            theirs.send(message)
        os._exit(0)
    theirs.close()
    with ours:
        yield ours
    os.waitpid(child, 0)


def timed(step: Step, calls: int) -> float:
    """µs per call."""
    began = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - began) / calls * 1e6


def contended(workers: int, calls: int) -> float:
    """µs per reserve + settle of one key when so many processes do nothing else."""
    gate = Gate(workers)
    start, starter = os.pipe()
    children = []
    for worker in range(1, workers):
        child = os.fork()
        if child == 0:
            limiter = RateLimiter(gate.store, worker)
            os.write(starter, b"x")
            while True:
                limiter.reserve(gate.principal, 600).settle(240)
        children.append(child)
    for _ in children:
        os.read(start, 1)
    took = timed(gate.reserve, calls)
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return took


def main() -> None:
    """Prints one line per step: the median of the rounds, and the median of its ratios to the baseline of its round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--calls", type=int, default=10_000)
    options = parser.parse_args()
    with echo() as asked:
        measured = steps(asked)
        results: dict[str, list[float]] = {name: [] for name in measured}
        for _ in range(options.rounds):
            for name, step in measured.items():
                results[name].append(timed(step, options.calls))
    baseline = next(iter(results.values()))
    workers = min(len(os.sched_getaffinity(0)), 4)
    name = f"reserve + settle, {workers} at one key at once"
    results[name] = [contended(workers, options.calls) for _ in baseline]
    print(f"{'':<44}{'µs':>8}{'least':>8}{'x SHA-256':>12}")
    for name, values in results.items():
        ratios = [value / base for value, base in zip(values, baseline, strict=True)]
        middle, ratio = statistics.median(values), statistics.median(ratios)
        sys.stdout.write(f"{name:<44}{middle:>8.2f}{min(values):>8.2f}{ratio:>12.1f}\n")


if __name__ == "__main__":
    main()
