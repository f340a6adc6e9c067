"""What a request passes before a byte of its body is waited for: the Host header, the key.

Neighbours: middleware.py (Host), auth.py (keys), ratelimit.py (the limits, which need the body), relay.py (the caller).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.auth import Principal
from gateway.call import Call
from gateway.entrance import Entrance
from gateway.middleware import HostGuard
from gateway.ratelimit import RateLimiter, Reservation
from gateway.replicas.limiter import Lease, SharedLimiter

Reserved = Reservation | Lease


@dataclass(frozen=True, slots=True)
class Door:
    """Those who decide who may take anything; with `shared` it counts in place of `limiter`."""

    guard: HostGuard
    entrance: Entrance
    limiter: RateLimiter
    shared: SharedLimiter | None = None

    async def let_in(self, call: Call, headers: Mapping[bytes, bytes]) -> Principal:
        """Who sends `call`, whose headers are `headers`, the last one where a name is repeated. Raises HostRefused,
        TooManyHeaders and InvalidKey."""
        repeated = len(headers) != len(call.headers)
        if repeated or not self.guard.passes(headers):
            self.guard.check(call.headers, call.http_version)
        return await self.entrance.admit(call.headers, call.peer, "openai", None if repeated else headers)

    async def reserve(self, principal: Principal, estimated_tokens: int, model: str) -> Reserved:
        """What RateLimiter.reserve does, here or at Redis, whose answer is waited for. Raises RateLimited,
        TooManyTokens and LimitsUnavailable."""
        if self.shared is None:
            return self.limiter.reserve(principal, estimated_tokens, model)
        return await self.shared.reserve(principal, estimated_tokens, model)
