"""A SharedLimiter at a real Redis, for tests; the timeout is one that a busy machine keeps."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator

from config.limits import OnRedisError
from config.redis import RedisSettings
from gateway.auth import Principal
from gateway.limits import Account, Limits
from gateway.ratelimit import RateLimiter, Reservation
from gateway.ratelimit_store import LimitStore
from gateway.replicas.limiter import REDIS_CLOCK, Lease, SharedLimiter
from gateway.slot import Slot

PATIENT_MS = 1000
# For scripts whose clock a test turns.
CLOCK = b"{redis.call('GET', 'clock:s'), redis.call('GET', 'clock:us')}"


def principal(limits: Limits, name: str = "a") -> Principal:
    digest = hashlib.sha256(name.encode()).digest()
    return Principal(name, None, None, limits, Slot(digest), None, digest)


class Replica:
    """One gateway's limiter, and the key that asks it."""

    def __init__(self, limiter: SharedLimiter, key: Principal) -> None:
        self.limiter = limiter
        self.key = key

    async def reserve(self, tokens: int = 0, key: Principal | None = None) -> Lease | Reservation:
        return await self.limiter.reserve(key or self.key, tokens, "m")

    async def until(self, *, up: bool) -> None:
        """Returns when the limiter knows that Redis is there, or is not."""
        async with asyncio.timeout(30):
            while self.limiter.up is not up:  # noqa: ASYNC110 - what the limiter knows has no event
                await asyncio.sleep(0.001)


@contextlib.asynccontextmanager
async def replica(
    url: str,
    limits: Limits,
    *,
    on_error: OnRedisError = "closed",
    timeout_ms: int = PATIENT_MS,
    shared: tuple[Account, ...] = (),
    password_file: str | None = None,
    clock: bytes = REDIS_CLOCK,
) -> AsyncIterator[Replica]:
    """A gateway's limiter while it runs, for one key with `limits`."""
    store = LimitStore(8)
    key = principal(limits)
    settings = RedisSettings(url=url, timeout_ms=timeout_ms, password_file=password_file)
    limiter = SharedLimiter(settings, clock)
    limiter.adopt(RateLimiter(store), on_error, {"m": shared} if shared else {})
    running = asyncio.create_task(limiter.run())
    try:
        yield Replica(limiter, key)
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
