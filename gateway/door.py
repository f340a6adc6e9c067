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

    def let_in(self, call: Call, headers: Mapping[bytes, bytes]) -> Principal:
        """Who sends `call`, whose headers are `headers`, the last one where a name is repeated. Raises HostRefused,
        TooManyHeaders and InvalidKey; SignerUnknown where `ask_issuer` may know more."""
        repeated = len(headers) != len(call.headers)
        if repeated or not self.guard.passes(headers):
            self.guard.check(call.headers, call.http_version)
        return self.entrance.principal(call.headers, call.peer, "openai", None if repeated else headers)

    async def ask_issuer(self, call: Call) -> Principal:
        """The same for a `call` whose token is signed with a key that its issuer may have since a moment."""
        return await self.entrance.admit(call.headers, call.peer, "openai")
