"""How much is left of each limit, in the memory of this machine: admits a request and settles what it took in the end.

Neighbours: buckets.py (what debts mean), limits.py (the figures and whom they are for), ratelimit_store.py (the memory
and its locks), replicas/limiter.py (the same at Redis), auth.py (principals).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from gateway.auth import Principal
from gateway.buckets import (
    DAY_MS,
    MAX_DEBT,
    MAX_TOKENS,
    MINUTE_US,
    NO_DEBTS,
    Debts,
    Owed,
    bounded,
    check_cap,
    header_lines,
    obstacle,
    refusal,
)
from gateway.limits import Account, Limits
from gateway.ratelimit_store import DAY, OWN, REQUESTS, SEEN, TOKENS, UPDATED, LimitStore

BYTES_PER_TOKEN = 4


def estimate_tokens(body_bytes: int, output_cap: int | None, n: int, default_output_tokens: int) -> int:
    """What a request is likely to cost at most: the prompt by its length, and `n` answers of `output_cap` tokens
    (`default_output_tokens` where the client named none)."""
    cap = default_output_tokens if output_cap is None else output_cap
    tokens = -(-body_bytes // BYTES_PER_TOKEN)
    if cap > 0:
        tokens += cap * n if n > 1 else cap
    return tokens if tokens < MAX_TOKENS else MAX_TOKENS


class Reservation:
    """One admitted request. Whoever got it calls `settle` when the request is over, however it ended."""

    __slots__ = ("_debts", "_estimate", "_limiter", "_principal", "_shared")

    def __init__(
        self,
        limiter: RateLimiter,
        principal: Principal,
        estimate: int,
        debts: Debts = NO_DEBTS,
        shared: tuple[Account, ...] = (),
    ) -> None:
        """`debts` are the principal's right after this request was admitted, `shared` whoever else pays for it."""
        self._limiter: RateLimiter | None = limiter
        self._principal = principal
        self._estimate = estimate
        self._debts = debts
        self._shared = shared

    def header_lines(self) -> bytes:
        """`x-ratelimit-*: …` lines, each with its CRLF, as things stood when the request was admitted; empty where
        neither requests nor tokens are limited."""
        return header_lines(self._principal.limits, self._debts)

    def settle(self, actual_tokens: int | None, *, served: bool = True) -> None:
        """Corrects the estimate to what the request took (None: nobody knows, the estimate stays) and ends its
        being counted as running; a request that nobody could serve is given back itself. Calls after the first do
        nothing."""
        limiter = self._limiter
        if limiter is not None:
            self._limiter = None
            limiter.settle(self._principal, self._estimate, actual_tokens, served=served)
            for account in self._shared:
                limiter.settle(account, self._estimate, actual_tokens, served=served)


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
        self._clock_ns = clock_ns
        self._beside = {} if shared is None else shared
        # One worker pays nothing for there being others elsewhere.
        self._shared = store.workers > 1
        # Where in a record the workers' own words are: requests running, tokens given back.
        self._running = OWN + worker
        self._given_back = OWN + store.workers + worker

    def most_tokens(self, principal: Principal, model: str) -> int | None:
        """What one request of `principal` to `model` may take at most, by whoever pays for it; None without a cap."""
        most = principal.limits.max_tokens_per_request
        for account in self._beside.get(model, ()) if self._beside else ():
            cap = account.limits.max_tokens_per_request
            if cap is not None and (most is None or cap < most):
                most = cap
        return most

    def reserve(self, principal: Principal, estimated_tokens: int, model: str = "") -> Reservation:
        """Takes one request, the estimated tokens and one of the concurrent places, or nothing at all.

        Raises RateLimited and TooManyTokens. A request larger than the whole bucket is admitted when the bucket is
        full, and leaves it below zero.
        """
        limits = principal.limits
        if limits.max_tokens_per_request is not None:
            check_cap(principal.whose, limits, estimated_tokens)
        estimate = bounded(estimated_tokens)
        if self._beside and model in self._beside:
            return self._reserve_all(principal, self._beside[model], estimate)
        if limits.counts_nothing:
            return Reservation(self, principal, estimate)
        base = self._store.base(principal.slot)
        if self._shared:
            self._store.lock(principal.slot)
        try:
            owed, running = self._owed(base, limits)
            hindrance = obstacle(limits, owed, running, estimate)
            if hindrance is not None:
                raise refusal(principal.whose, limits, *hindrance, header_lines(limits, owed[1:4]))
            debts = self._take(base, owed, estimate)
        finally:
            if self._shared:
                self._store.unlock(principal.slot)
        return Reservation(self, principal, estimate, debts)

    def _reserve_all(self, principal: Principal, shared: tuple[Account, ...], estimate: int) -> Reservation:
        """The same for several accounts at once: all of them pay, or none."""
        for account in shared:
            check_cap(account.whose, account.limits, estimate)
        payers: list[Principal | Account] = [principal, *shared]
        accounts = [account for account in payers if not account.limits.counts_nothing]
        # Everybody locks in the same order, so that nobody waits in a circle.
        slots = sorted(account.slot for account in accounts)
        for slot in slots:
            self._store.lock(slot)
        try:
            found = [self._owed(self._store.base(account.slot), account.limits) for account in accounts]
            self._check_all(accounts, found, estimate)
            debts = [
                self._take(self._store.base(account.slot), owed, estimate)
                for account, (owed, _) in zip(accounts, found, strict=True)
            ]
        finally:
            for slot in slots:
                self._store.unlock(slot)
        own = NO_DEBTS if principal.limits.counts_nothing else debts[0]
        return Reservation(self, principal, estimate, own, shared)

    def _check_all(
        self, accounts: Sequence[Principal | Account], found: Sequence[tuple[Owed, int]], estimate: int
    ) -> None:
        """Raises RateLimited for the account that keeps the request out for longest."""
        hindered = []
        for account, (owed, running) in zip(accounts, found, strict=True):
            hindrance = obstacle(account.limits, owed, running, estimate)
            if hindrance is not None:
                hindered.append((account, hindrance))
        if hindered:
            account, (limit, wait_us) = max(hindered, key=lambda each: each[1][1])
            own = accounts[0]
            lines = header_lines(own.limits, found[0][0][1:4]) if isinstance(own, Principal) else b""
            raise refusal(account.whose, account.limits, limit, wait_us, lines)

    def settle(
        self, account: Principal | Account, estimate: int, actual_tokens: int | None, *, served: bool = True
    ) -> None:
        """What Reservation.settle does, once, for one account."""
        limits = account.limits
        if limits.counts_nothing:
            return
        words, base = self._words, self._store.base(account.slot)
        words[base + self._running] -= 1
        if not limits.counts_tokens and served:
            return
        more = 0 if actual_tokens is None or not limits.counts_tokens else bounded(actual_tokens) - estimate
        if more > 0 or not served:
            self._correct(account, base, max(more, 0), 0 if served else MINUTE_US)
        if more < 0:
            # What is given back may wait for the next reservation: a debt ends the same whichever of the two comes
            # first, this or the time that pays it off.
            words[base + self._given_back] -= more

    def _correct(self, account: Principal | Account, base: int, more_tokens: int, requests_back: int) -> None:
        """Adds to the debt at once: later, time that was idle before would pay for it."""
        self._store.lock(account.slot)
        try:
            (now, requests, tokens, day, seen), _ = self._owed(base, account.limits)
            requests = max(requests - requests_back, 0)
            self._write(base, now, seen, (requests, tokens + more_tokens * MINUTE_US, day + more_tokens * DAY_MS))
        finally:
            self._store.unlock(account.slot)

    def _owed(self, base: int, limits: Limits) -> tuple[Owed, int]:
        """What is owed now, and how many requests run."""
        updated, requests, tokens, seen, day, *own = self._store.record(base)
        workers = self._store.workers
        # One worker's are read without making lists of them.
        running, given_back = own if workers == 1 else (sum(own[:workers]), sum(own[workers:]))
        now = self._clock_ns() // 1000
        elapsed = now - updated
        if elapsed < 0:
            now, elapsed = updated, 0
        limit = limits.tokens_per_minute
        if limit is None:
            tokens = 0
        else:
            tokens -= (given_back - seen) * MINUTE_US
            tokens = 0 if limit * elapsed >= tokens else tokens - limit * elapsed
        limit = limits.requests_per_minute
        requests = 0 if limit is None or limit * elapsed >= requests else requests - limit * elapsed
        limit = limits.tokens_per_day
        if limit is None:
            day = 0
        else:
            day -= (given_back - seen) * DAY_MS
            paid = limit * (now // 1000 - updated // 1000)
            day = 0 if paid >= day else day - paid
        return (now, requests, tokens, day, given_back), running

    def _take(self, base: int, owed: Owed, estimate: int) -> Debts:
        """One request of `estimate` tokens more. Returns the debts then."""
        now, requests, tokens, day, seen = owed
        requests += MINUTE_US
        tokens += estimate * MINUTE_US
        day += estimate * DAY_MS
        self._write(base, now, seen, (requests, tokens, day))
        self._words[base + self._running] += 1
        return requests, tokens, day

    def _write(self, base: int, now: int, seen: int, debts: Debts) -> None:
        """In this order a worker that is killed between two words may cost the key some of what it has paid off, and
        never lends it any."""
        words = self._words
        words[base + UPDATED] = now
        words[base + SEEN] = seen
        words[base + REQUESTS], tokens, day = debts
        words[base + TOKENS] = tokens if tokens < MAX_DEBT else MAX_DEBT
        words[base + DAY] = day if day < MAX_DEBT else MAX_DEBT
