"""Limits that replicas share: one script at Redis admits a request, one settles it; without Redis, what is configured.

Neighbours: reserve.lua, settle.lua, renew.lua (the counting; shared.lua is the beginning of each), link.py (the
connection), ../ratelimit.py (the same in memory, and what `local` means), ../windows.py (what counts mean).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.resources import files
from typing import Any

from config.limits import OnRedisError
from config.redis import RedisSettings
from gateway.auth import Principal
from gateway.errors import LimitsUnavailable
from gateway.limits import Account, Limits
from gateway.ratelimit import RateLimiter, Reservation
from gateway.replicas.link import Link
from gateway.replicas.wire import RedisGone, RedisRefused
from gateway.windows import bounded, check_cap, header_lines, refusal

# How long a gateway that was killed keeps its places among the running requests.
LEASE_SECONDS = 30.0
_LEASE_MS = b"%d" % (LEASE_SECONDS * 1000)
RENEW_SECONDS = 10.0
# How long the first requests may wait for the first try to connect.
START_SECONDS = 5.0
# What one renewal names at most, so that Redis does nothing else for no more than a millisecond.
RENEWED_AT_ONCE = 500
# Settlements that wait for Redis to come back.
MAX_UNSETTLED = 10_000

REDIS_CLOCK = b"redis.call('TIME')"

_KINDS = ("requests", "tokens", "tokens_per_day", "concurrent")

UNLIMITED = Limits()

Payer = Principal | Account
Words = tuple[bytes, ...]

logger = logging.getLogger("upshift")


class Lease:
    """One request that is let in. Whoever got it calls `settle` when the request is over, however it ended.

    `accounts` are those that pay for it, `keys` theirs at Redis, `figures` their limits as the scripts are told of
    them, `parts` where in each one's windows it is counted (0 where nobody has told us); `limits` are those of the
    key. Without `limiter` nobody counts it."""

    __slots__ = ("_limiter", "accounts", "estimate", "figures", "id", "keys", "limits", "lines", "parts")

    def __init__(
        self,
        limiter: SharedLimiter | None,
        id_: bytes,
        accounts: Sequence[Payer] = (),
        limits: Limits = UNLIMITED,
        estimate: int = 0,
    ) -> None:
        self._limiter = limiter
        self.id = id_
        self.accounts = accounts
        self.limits = limits
        self.estimate = estimate
        self.keys: Words = ()
        self.figures = [figure for account in accounts for figure in _figures(account.limits)]
        self.parts = [0] * len(accounts)
        self.lines = b""

    def header_lines(self) -> bytes:
        """As Reservation.header_lines."""
        return self.lines

    def settle(self, actual_tokens: int | None, *, served: bool = True) -> None:
        """As Reservation.settle; sends and does not wait."""
        limiter = self._limiter
        if limiter is not None:
            self._limiter = None
            more = 0 if actual_tokens is None else bounded(actual_tokens) - self.estimate
            limiter.settle(self, more, served=served)


class SharedLimiter:
    """Admits requests of one process against counters at Redis. Belongs to one event loop; `adopt` comes first, and
    `run` must run as long as it is used. `clock` is what the scripts ask for the time, in seconds and microseconds."""

    def __init__(self, settings: RedisSettings, clock: bytes = REDIS_CLOCK) -> None:
        scripts = [_script(name, clock) for name in ("reserve", "settle", "renew")]
        self._reserve, self._settle, self._renewal = (
            hashlib.sha1(script, usedforsecurity=False).hexdigest().encode() for script in scripts
        )
        self._link = Link(settings, scripts, self._on_up)
        # One hash tag for all: a script needs its keys on one node of a cluster.
        self._prefix = f"{{{settings.prefix}}}:".encode()
        self._name = secrets.token_hex(6).encode()
        self._leases = 0
        # What Redis knows of us:
        self._running: dict[bytes, Lease] = {}
        # What it should know and does not:
        self._unsettled: deque[Words] = deque(maxlen=MAX_UNSETTLED)
        self._tried = False
        self._noted: set[str] = set()
        self.without_redis = 0

    def adopt(self, local: RateLimiter, on_error: OnRedisError, shared: Mapping[str, tuple[Account, ...]]) -> None:
        """From now on `local` counts while Redis cannot, where `on_error` says so; `shared` is as for RateLimiter."""
        self._local = local
        self._on_error = on_error
        self._beside = shared

    async def run(self) -> None:
        """Keeps the connection and the leases of running requests until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._link.run())
            group.create_task(self._renew())

    @property
    def up(self) -> bool:
        """Whether Redis counts now."""
        return self._link.up

    async def reserve(self, principal: Principal, estimated_tokens: int, model: str) -> Lease | Reservation:
        """As RateLimiter.reserve, within the timeout; also raises LimitsUnavailable."""
        payers: list[Payer] = [principal, *self._beside.get(model, ())]
        for payer in payers:
            check_cap(payer.whose, payer.limits, estimated_tokens)
        accounts = [payer for payer in payers if not payer.limits.counts_nothing]
        if not accounts:
            return self._local.reserve(principal, estimated_tokens)
        if not self._tried:
            await self._first_try()
        if not self._link.up:
            return self._without(principal, estimated_tokens, model)
        self._leases += 1
        lease = Lease(
            self, b"%b-%x" % (self._name, self._leases), accounts, principal.limits, bounded(estimated_tokens)
        )
        lease.keys = self._keys(accounts)
        words = (*lease.keys, lease.id, _LEASE_MS, b"%d" % lease.estimate, *lease.figures)
        try:
            answer = await self._link.ask(b"EVALSHA", self._reserve, *words)
        except asyncio.CancelledError:
            self._undo(lease)
            raise
        except (RedisGone, RedisRefused) as error:
            self._note(error)
            self._undo(lease)
            return self._without(principal, estimated_tokens, model)
        return self._admitted(lease, answer)

    async def _first_try(self) -> None:
        """A gateway's first requests wait until it is known whether Redis answers, lest they be counted elsewhere."""
        with suppress(TimeoutError):
            async with asyncio.timeout(START_SECONDS):
                await self._link.tried.wait()
        self._tried = True

    def settle(self, lease: Lease, more_tokens: int, *, served: bool) -> None:
        """What Lease.settle does, once."""
        self._running.pop(lease.id, None)
        self._send_settlement(lease, more_tokens, 0 if served else 1)

    def _undo(self, lease: Lease) -> None:
        """Redis may have admitted the request, or may do so yet: a server that was stopped reads on where it was. This
        comes after it, on the same connection or the next."""
        self._send_settlement(lease, -lease.estimate, 1)

    def _admitted(self, lease: Lease, answer: list[Any]) -> Lease:
        """The lease as it was answered. Raises RateLimited."""
        refused, (requests, tokens, day, requests_ms, tokens_ms), *about = answer
        ns = requests_ms * 1_000_000, tokens_ms * 1_000_000
        lease.lines = header_lines(lease.limits, (requests, tokens, day), *ns)
        if refused:
            number, kind, wait_ms = about
            account = lease.accounts[number - 1]
            raise refusal(account.whose, account.limits, _KINDS[kind - 1], wait_ms * 1_000_000, lease.lines)
        lease.parts = about
        self._running[lease.id] = lease
        return lease

    def _without(self, principal: Principal, estimated_tokens: int, model: str) -> Lease | Reservation:
        self.without_redis += 1
        if self._on_error == "closed":
            raise LimitsUnavailable("The limits of this API key cannot be checked now; try again soon.")
        if self._on_error == "open":
            return Lease(None, b"")
        return self._local.reserve(principal, estimated_tokens, model)

    def _note(self, error: RedisGone | RedisRefused) -> None:
        """The link tells of outages; what concerns one key alone is told here, each kind once."""
        if isinstance(error, RedisRefused) and self._link.up and error.code not in self._noted:
            self._noted.add(error.code)
            logger.error("Redis refused to count a request: %s", error)

    # -- what Redis is told without waiting ------------------------------------------------------------------------

    def _send_settlement(self, lease: Lease, more_tokens: int, requests_back: int) -> None:
        lease_words = (*lease.keys, lease.id, _LEASE_MS)
        figures = (b"%d" % requests_back, *[b"%d" % part for part in lease.parts], *lease.figures)
        first = (*lease_words, b"%d" % more_tokens, *figures)
        # Whether it was done is not known when the connection is lost meanwhile. Giving back twice does nothing, for
        # the lease is gone by then; charging twice would charge.
        again = first if more_tokens <= 0 else (*lease_words, b"0", *figures)
        try:
            told = self._link.send(b"EVALSHA", self._settle, *first)
        except RedisGone:
            self._unsettled.append(first)
            return
        told.add_done_callback(lambda told: self._on_told(told, again))

    def _on_told(self, told: asyncio.Future[Any], again: Words) -> None:
        if not told.cancelled() and told.exception() is not None:
            self._unsettled.append(again)

    def _on_up(self) -> None:
        waiting, self._unsettled = self._unsettled, deque(maxlen=MAX_UNSETTLED)
        for words in waiting:
            self._link.send(b"EVALSHA", self._settle, *words)
        self.renew()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            if self._link.up:
                self.renew()

    def renew(self) -> None:
        """Makes the leases of all running requests last longer; `run` does it every RENEW_SECONDS. Nothing is renewed
        that was settled before: all of it goes over one connection, in order."""
        by_account: dict[bytes, list[bytes]] = {}
        for lease in self._running.values():
            for leases in lease.keys[2::2]:
                by_account.setdefault(leases, []).append(lease.id)
        for leases, ids in by_account.items():
            for start in range(0, len(ids), RENEWED_AT_ONCE):
                some = ids[start : start + RENEWED_AT_ONCE]
                self._link.send(b"EVALSHA", self._renewal, b"1", leases, _LEASE_MS, *some)

    def _keys(self, accounts: Sequence[Payer]) -> Words:
        """How many keys, and each account's counts and leases."""
        names = [self._prefix + account.digest[:16].hex().encode() for account in accounts]
        return (b"%d" % (2 * len(names)), *(key for name in names for key in (name + b":counts", name + b":leases")))


def _script(name: str, clock: bytes) -> bytes:
    folder = files("gateway.replicas")
    shared = folder.joinpath("shared.lua").read_bytes().replace(REDIS_CLOCK, clock)
    return shared + folder.joinpath(f"{name}.lua").read_bytes()


def _figures(limits: Limits) -> Words:
    minute, day = limits.tokens_per_minute or 0, limits.tokens_per_day or 0
    return tuple(b"%d" % limit for limit in (limits.requests_per_minute or 0, minute, day, limits.concurrent or 0))
