"""What a request passes before a byte of its body is waited for: the Host header, the key.

Neighbours: middleware.py (Host), auth.py (keys), ratelimit.py (the limits, which need the body), relay.py (the caller).
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.again import Head
from gateway.auth import Principal
from gateway.call import Call
from gateway.entrance import Entrance
from gateway.errors import SignerUnknown
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

    def known(self, head: Head) -> Principal | None:
        """Who was let in here with this head and would be again."""
        principal = head.principal
        return principal if head.door is self and principal is not None and self.entrance.knows(principal) else None

    def let_in(self, call: Call) -> Principal:
        """Who sends `call`. Raises HostRefused, TooManyHeaders and InvalidKey; SignerUnknown where the issuer may know
        more."""
        headers, fields = call.head.headers, call.head.fields
        repeated = len(fields) != len(headers)
        if repeated or not self.guard.passes(fields):
            self.guard.check(headers, call.head.http_version)
        return self.entrance.principal(headers, call.peer, "openai", None if repeated else fields)

    async def admit(self, call: Call) -> Principal:
        """The same; where the token names a key that its issuer may have since a moment, it is asked before."""
        try:
            return self.let_in(call)
        except SignerUnknown:
            return await self._ask_issuer(call)

    async def _ask_issuer(self, call: Call) -> Principal:
        return await self.entrance.admit(call.head.headers, call.peer, "openai")
