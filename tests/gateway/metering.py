"""A limiter with a clock that a test turns, and how to read its header lines."""

from __future__ import annotations

import copy

from gateway.auth import Principal
from gateway.limits import Account, Limits
from gateway.ratelimit import RateLimiter, Reservation
from gateway.ratelimit_store import LimitStore
from gateway.replicas.limiter import Lease


class Clock:
    """Nanoseconds that pass only when told."""

    def __init__(self, seconds: float = 1000.0) -> None:
        self.now_us = round(seconds * 1e6)

    def __call__(self) -> int:
        return self.now_us * 1000

    def pass_seconds(self, seconds: float) -> None:
        self.now_us += round(seconds * 1e6)


def forked(store: LimitStore) -> LimitStore:
    """The same memory as another process knows it."""
    other = copy.copy(store)
    other._known = {digest: copy.copy(slot) for digest, slot in store._known.items()}
    other._owners = dict(store._owners)
    other._kept = set()
    return other


class Meter:
    """One key with `limits` at one worker."""

    def __init__(
        self,
        limits: Limits,
        store: LimitStore | None = None,
        worker: int = 0,
        *,
        shared: tuple[Account, ...] = (),
        key: bytes = b"a",
    ) -> None:
        self.clock = Clock()
        self.store = store or LimitStore(64)
        digest = key * 32
        self.principal = Principal("a", None, None, limits, self.store.slot_of(digest), None, digest)
        self.limiter = RateLimiter(self.store, worker, self.clock, {"m": shared} if shared else None)

    def reserve(self, tokens: int = 0) -> Reservation:
        return self.limiter.reserve(self.principal, tokens, "m")


def fields(lines: bytes) -> dict[str, str]:
    """Header lines as a mapping, without the common beginning of their names."""
    assert lines == b"" or lines.endswith(b"\r\n")
    pairs = (line.split(": ") for line in lines.decode().split("\r\n")[:-1])
    return {name.removeprefix("x-ratelimit-"): value for name, value in pairs}


def left(reservation: Reservation | Lease, kind: str) -> int:
    """What the header says is left of `requests` or `tokens`."""
    return int(fields(reservation.header_lines())[f"remaining-{kind}"])
