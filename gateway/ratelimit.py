"""How much is left of each limit, in the memory of this machine: admits a request and settles what it took in the end.

Neighbours: windows.py (what counts mean), limits.py (the figures and whom they are for), ratelimit_records.py (the
memory and its locks), ratelimit_store.py (whose is what), replicas/limiter.py (the same at Redis), auth.py (payers).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from struct import Struct

from gateway.auth import Principal
from gateway.errors import LimitsUnavailable
from gateway.limits import Account, Limits
from gateway.ratelimit_records import AT, DAY, OWN, REQUESTS, TAG, TOKENS, WORD_BYTES
from gateway.ratelimit_store import LimitStore, StoreFull
from gateway.slot import Slot
from gateway.windows import (
    DAY_PART,
    MAX_TOKENS,
    PART_NS,
    PARTS,
    Counted,
    bounded,
    check_cap,
    duration,
    header_lines,
    hindrance,
    refusal,
    standing,
)

Payer = Principal | Account

# TAG, AT, REQUESTS, TOKENS and DAY, read in one piece.
_HEAD = Struct("5q")


class _Moved(Exception):
    """Another key has the slot."""


class Reservation:
    """One admitted request. Whoever got it calls `settle` when the request is over, however it ended."""

    __slots__ = ("_estimate", "_limiter", "_lines", "_part", "_payers")

    def __init__(
        self, limiter: RateLimiter, payers: Sequence[Payer], estimate: int, part: int = 0, lines: bytes = b""
    ) -> None:
        """`payers` are those in whose counts it is, in `part`; `lines` the key's x-ratelimit lines at its admission."""
        self._limiter: RateLimiter | None = limiter
        self._payers = payers
        self._estimate = estimate
        self._part = part
        self._lines = lines

    def header_lines(self) -> bytes:
        """`x-ratelimit-*: …` lines, each with its CRLF, as things stood when the request was admitted; empty where
        neither requests nor tokens are limited."""
        return self._lines

    def settle(self, actual_tokens: int | None, *, served: bool = True) -> None:
        """Corrects the estimate to what the request took (None: nobody knows, the estimate stays) and ends its
        being counted as running; a request that nobody could serve is given back itself. What is given back is not
        counted any more where it was; what the estimate lacked is counted now. Calls after the first do nothing."""
        limiter = self._limiter
        if limiter is not None:
            self._limiter = None
            more = 0 if actual_tokens is None else bounded(actual_tokens) - self._estimate
            for payer in self._payers:
                limiter.settle(payer, self._part, more, served)


class RateLimiter:
    """Admits requests of one worker process against counters that all workers share.

    `worker` is the process's number in the store, `clock_ns` a clock that all of them share and nobody can set;
    `shared` are the accounts beside the key's own that pay for a request, by model. Must be used from one thread.
    """

    def __init__(
        self,
        store: LimitStore,
        worker: int = 0,
        clock_ns: Callable[[], int] = time.monotonic_ns,
        shared: Mapping[str, tuple[Account, ...]] | None = None,
    ) -> None:
        self._store = store
        self._words = store.words
        self._memory = store.memory
        self._requests_ring, self._tokens_ring, self._day_ring = store.requests_ring, store.tokens_ring, store.day_ring
        self._clock_ns = clock_ns
        self._beside = {} if shared is None else shared
        # One worker pays nothing for there being others elsewhere.
        self._shared = store.workers > 1
        # Where in a record the worker's own word is: its requests that run.
        self._running = OWN + worker

    def most_tokens(self, principal: Principal, model: str) -> int | None:
        """What one request of `principal` to `model` may take at most, by whoever pays for it; None without a cap."""
        most = principal.limits.max_tokens_per_request
        for account in self._beside.get(model, ()) if self._beside else ():
            cap = account.limits.max_tokens_per_request
            if cap is not None and (most is None or cap < most):
                most = cap
        return most

    def look(self, principal: Principal) -> None:
        """Takes nothing. Raises RateLimited where `reserve` would for any request of `principal`, whatever it costs."""
        limits, slot = principal.limits, principal.slot
        if limits.counts_nothing:
            return
        self._find((principal,))
        self._store.lock(slot.number)
        try:
            now_ns = self._clock_ns()
            self._store.advance(slot.base, now_ns // PART_NS)
            rings = self._store.rings(slot.base, limits)
            running = self._store.running(slot.base)
        finally:
            self._store.unlock(slot.number)
        obstacle = hindrance(limits, rings._replace(tokens=(), day=()), running, 0, now_ns)
        if obstacle is not None and not self._has_moved(slot):
            raise refusal(principal.whose, limits, *obstacle, standing(limits, rings, now_ns))

    def reserve(self, principal: Principal, estimated_tokens: int, model: str = "") -> Reservation:
        """Takes one request, the estimated tokens and one of the concurrent places, or nothing at all.

        Raises RateLimited, TooManyTokens and, where there is no room for one key more, LimitsUnavailable. A request
        larger than a whole limit is admitted when nothing is counted.
        """
        limits = principal.limits
        if limits.max_tokens_per_request is not None:
            check_cap(principal.whose, limits, estimated_tokens)
        estimate = estimated_tokens if 0 <= estimated_tokens <= MAX_TOKENS else bounded(estimated_tokens)
        if self._beside and model in self._beside:
            return self._reserve_all(principal, self._beside[model], estimate)
        if limits.counts_nothing:
            return Reservation(self, (), estimate)
        slot = principal.slot
        if self._shared:
            self._store.lock(slot.number)
        try:
            now_ns = self._clock_ns()
            part, counted = self._take(slot, limits, estimate, now_ns // PART_NS)
            if counted is None:
                self._check_all((principal,), estimate, now_ns)
                counted = self._take_all((principal,), estimate, part, now_ns)
            if not limits.told_by_minute or not estimate:
                lines = self._lines(principal, counted, estimate, part, now_ns)
            else:
                # The usual ones, without going through what others there are.
                most_requests, most_tokens, _, _ = limits.most
                left = most_tokens - counted[1]
                reset = duration((part + PARTS) * 1000 - now_ns // 1_000_000)
                values = most_requests - counted[0], reset, left if left > 0 else 0, reset
                lines = limits.header_template % values
        except _Moved:
            pass  # once its lock is let go
        else:
            return Reservation(self, (principal,), estimate, part, lines)
        finally:
            if self._shared:
                self._store.unlock(slot.number)
        self._find((principal,))
        return self.reserve(principal, estimated_tokens, model)

    def _reserve_all(self, principal: Principal, shared: tuple[Account, ...], estimate: int) -> Reservation:
        """The same for several accounts at once: all of them pay, or none."""
        for account in shared:
            check_cap(account.whose, account.limits, estimate)
        everybody: list[Payer] = [principal, *shared]
        payers = [payer for payer in everybody if not payer.limits.counts_nothing]
        self._find(payers)
        # Everybody locks in the same order, so that nobody waits in a circle.
        numbers = sorted(payer.slot.number for payer in payers)
        for number in numbers:
            self._store.lock(number)
        try:
            if any(self._has_moved(payer.slot) for payer in payers):
                raise _Moved
            now_ns = self._clock_ns()
            part = max(now_ns // PART_NS, *(self._words[payer.slot.base + AT] for payer in payers))
            counted = self._take_all(payers, estimate, part, now_ns)
            lines = b"" if principal.limits.counts_nothing else self._lines(principal, counted, estimate, part, now_ns)
        except _Moved:
            pass  # once all locks are let go
        else:
            return Reservation(self, payers, estimate, part, lines)
        finally:
            for number in numbers:
                self._store.unlock(number)
        return self._reserve_all(principal, shared, estimate)

    def _has_moved(self, slot: Slot) -> bool:
        return self._words[slot.base + TAG] != slot.tag

    def _find(self, payers: Sequence[Payer]) -> None:
        """Moves the slots that were given to other keys meanwhile. Raises LimitsUnavailable."""
        for payer in payers:
            if self._has_moved(payer.slot):
                try:
                    self._store.find(payer.slot)
                except StoreFull as error:
                    raise LimitsUnavailable(f"The limits of this API key cannot be counted now: {error}.") from None

    def _take_all(self, payers: Sequence[Payer], estimate: int, part: int, now_ns: int) -> Counted:
        """Takes a request from all of `payers` or none, at `part`, before which none of them is. Returns what is
        counted of the first. Raises RateLimited for the one that keeps it out for longest."""
        taken: list[Counted] = []
        for payer in payers:
            _, counted = self._take(payer.slot, payer.limits, estimate, part)
            if counted is None:
                break
            taken.append(counted)
        else:
            return taken[0]
        for payer, _ in zip(payers, taken, strict=False):
            self._store.give_back(payer.slot.base, payer.limits, part, -estimate, -1)
            self._words[payer.slot.base + self._running] -= 1
        self._check_all(payers, estimate, now_ns)
        return self._take_all(payers, estimate, part, now_ns)

    def _take(self, slot: Slot, limits: Limits, estimate: int, part: int) -> tuple[int, Counted | None]:
        """Takes a request from one account at `part`, or later if it is there already, or takes nothing and gives None.
        Sums are written first, so that they are never below their parts. Raises _Moved."""
        words, base = self._words, slot.base
        tag, at, requests, tokens, day = _HEAD.unpack_from(self._memory, (base + TAG) * WORD_BYTES)
        if tag != slot.tag:
            raise _Moved
        if at != part:
            part, requests, tokens, day = self._store.advance(base, part)
        most_requests, most_tokens, most_day, most_running = limits.most
        own = base + self._running
        running = words[own]
        if (
            requests >= most_requests
            or (tokens + estimate > most_tokens and tokens)
            or (day + estimate > most_day and day)
            or (running if not self._shared else self._store.running(base)) >= most_running
        ):
            return part, None
        words[own] = running + 1
        place = base + part % PARTS
        if limits.counts_requests:
            words[base + REQUESTS] = requests = requests + 1
            words[place + self._requests_ring] += 1
        if limits.counts_minute:
            words[base + TOKENS] = tokens = tokens + estimate
            words[place + self._tokens_ring] += estimate
        if limits.counts_day:
            words[base + DAY] = day = day + estimate
            words[base + self._day_ring + part // DAY_PART % PARTS] += estimate
        return part, (requests, tokens, day)

    def _check_all(self, payers: Sequence[Payer], estimate: int, now_ns: int) -> None:
        """Raises RateLimited for the account that keeps the request out for longest, by what is in the parts. Returns
        where only a sum was wrong, because a worker has died while it wrote; then it is right now."""
        store = self._store
        found = [store.rings(payer.slot.base, payer.limits) for payer in payers]
        worst: tuple[Payer, str, int] | None = None
        for payer, rings in zip(payers, found, strict=True):
            running = store.running(payer.slot.base)
            obstacle = hindrance(payer.limits, rings, running, estimate, now_ns)
            if obstacle is not None and (worst is None or obstacle[1] > worst[2]):
                worst = payer, *obstacle
        if worst is not None:
            own, (payer, limit, wait_ns) = payers[0], worst
            lines = standing(own.limits, found[0], now_ns) if isinstance(own, Principal) else b""
            raise refusal(payer.whose, payer.limits, limit, wait_ns, lines)

    def _lines(self, principal: Principal, counted: Counted, estimate: int, part: int, now_ns: int) -> bytes:
        """The key's x-ratelimit lines when it has just been admitted at `part`."""
        if not estimate:
            # Then the last tokens may be of an earlier part.
            rings = self._store.rings(principal.slot.base, principal.limits)
            return standing(principal.limits, rings, now_ns)
        minute_ns = tokens_ns = (part + PARTS) * PART_NS - now_ns
        if not principal.limits.counts_minute:
            tokens_ns = (part // DAY_PART + PARTS) * DAY_PART * PART_NS - now_ns
        return header_lines(principal.limits, counted, minute_ns, tokens_ns)

    def settle(self, payer: Payer, part: int, more_tokens: int, served: bool) -> None:
        """What Reservation.settle does, once, for one account: `more_tokens` than were reserved at `part`."""
        limits, slot = payer.limits, payer.slot
        base = slot.base
        if more_tokens or not served:
            if self._shared:
                self._store.lock(slot.number)
            try:
                if more_tokens > 0:
                    self._store.charge(base, limits, self._clock_ns() // PART_NS, more_tokens)
                    more_tokens = 0
                self._store.give_back(base, limits, part, more_tokens, 0 if served else -1)
            finally:
                if self._shared:
                    self._store.unlock(slot.number)
        self._words[base + self._running] -= 1
