"""How much a key has left: admits a request against its limits and settles what it took in the end.

Buckets are integers: a debt of 60,000,000 per request or token that the limit pays off microsecond by microsecond, so
that nothing is lost to rounding and every figure in a header is right. Neighbours: limits.py (the figures),
ratelimit_store.py (the memory and its locks), auth.py (principals).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache

from gateway.auth import Principal
from gateway.errors import RateLimited, TooManyTokens
from gateway.limits import Limits
from gateway.ratelimit_store import OWN, REQUESTS, SEEN, TOKENS, UPDATED, LimitStore

# A bucket of `limit` units holds limit * MINUTE_US of debt and pays off `limit` per microsecond.
MINUTE_US = 60_000_000
# Bounds what one request can be worth, so that debts stay below 2^63.
MAX_TOKENS = 1_000_000_000
MAX_DEBT = 2**62
BYTES_PER_TOKEN = 4
# Nobody knows when a running request ends.
CONCURRENT_RETRY_US = 1_000_000


def _bounded(tokens: int) -> int:
    return tokens if 0 <= tokens <= MAX_TOKENS else min(max(tokens, 0), MAX_TOKENS)


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

    __slots__ = ("_estimate", "_limiter", "_principal", "_requests", "_tokens")

    def __init__(
        self, limiter: RateLimiter, principal: Principal, estimate: int, requests: int = 0, tokens: int = 0
    ) -> None:
        self._limiter: RateLimiter | None = limiter
        self._principal = principal
        self._estimate = estimate
        # Debts right after this request was admitted.
        self._requests = requests
        self._tokens = tokens

    def header_lines(self) -> bytes:
        """`x-ratelimit-*: …` lines, each with its CRLF, as things stood when the request was admitted; empty where
        neither requests nor tokens are limited."""
        return header_lines(self._principal.limits, self._requests, self._tokens)

    def settle(self, actual_tokens: int | None) -> None:
        """Corrects the estimate to what the request took (None: nobody knows, the estimate stays) and ends its
        being counted as running. Calls after the first do nothing."""
        limiter = self._limiter
        if limiter is not None:
            self._limiter = None
            limiter.settle(self._principal, self._estimate, actual_tokens)


class RateLimiter:
    """Admits requests of one worker process against counters that all workers share.

    `worker` is the process's number in the store, `clock_ns` a clock that all of them share and nobody can set. Must
    be used from one thread.
    """

    def __init__(self, store: LimitStore, worker: int = 0, clock_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._store = store
        self._words = store.words
        self._clock_ns = clock_ns
        # One worker pays nothing for there being others elsewhere.
        self._shared = store.workers > 1
        # Where in a record the workers' own words are: requests running, tokens given back.
        self._running = OWN + worker
        self._given_back = OWN + store.workers + worker
        self._middle = OWN + store.workers
        self._end = OWN + 2 * store.workers

    def reserve(self, principal: Principal, estimated_tokens: int) -> Reservation:
        """Takes one request, the estimated tokens and one of the concurrent places, or nothing at all.

        Raises RateLimited and TooManyTokens. A request larger than the whole bucket is admitted when the bucket is
        full, and leaves it below zero.
        """
        limits, slot = principal.limits, principal.slot
        cap = limits.max_tokens_per_request
        if cap is not None and estimated_tokens > cap:
            raise _too_many(cap, estimated_tokens)
        estimate = _bounded(estimated_tokens)
        if limits.counts_nothing:
            return Reservation(self, principal, estimate)
        words, base = self._words, self._store.base(slot)
        if self._shared:
            self._store.lock(slot)
        try:
            now, requests, tokens, seen = self._owed(base, limits)
            running = 0 if limits.concurrent is None else sum(words[base + OWN : base + self._middle])
            obstacle = _obstacle(limits, requests, tokens, running, estimate)
            if obstacle is not None:
                raise _refusal(limits, requests, tokens, *obstacle)
            requests += MINUTE_US
            tokens += estimate * MINUTE_US
            self._write(base, now, requests, tokens, seen)
            words[base + self._running] += 1
        finally:
            if self._shared:
                self._store.unlock(slot)
        return Reservation(self, principal, estimate, requests, tokens)

    def settle(self, principal: Principal, estimate: int, actual_tokens: int | None) -> None:
        """What Reservation.settle does, once."""
        limits = principal.limits
        if limits.counts_nothing:
            return
        words, base = self._words, self._store.base(principal.slot)
        words[base + self._running] -= 1
        if limits.tokens_per_minute is None or actual_tokens is None:
            return
        more = _bounded(actual_tokens) - estimate
        if more > 0:
            self._charge(principal, base, more)
        elif more < 0:
            # What is given back may wait for the next reservation: a debt ends the same whichever of the two comes
            # first, this or the time that pays it off.
            words[base + self._given_back] -= more

    def _charge(self, principal: Principal, base: int, more_tokens: int) -> None:
        """Adds to the debt at once: later, time that was idle before would pay for it."""
        self._store.lock(principal.slot)
        try:
            now, requests, tokens, seen = self._owed(base, principal.limits)
            self._write(base, now, requests, tokens + more_tokens * MINUTE_US, seen)
        finally:
            self._store.unlock(principal.slot)

    def _owed(self, base: int, limits: Limits) -> tuple[int, int, int, int]:
        """The time in microseconds, the debts of requests and tokens at that time, and the sum of the tokens given
        back, which the latter allows for."""
        updated, requests, tokens, seen = self._words[base + UPDATED : base + OWN]
        given_back = sum(self._words[base + self._middle : base + self._end])
        tokens -= (given_back - seen) * MINUTE_US
        now = self._clock_ns() // 1000
        elapsed = now - updated
        if elapsed < 0:
            now, elapsed = updated, 0
        limit = limits.tokens_per_minute
        tokens = 0 if limit is None or limit * elapsed >= tokens else tokens - limit * elapsed
        limit = limits.requests_per_minute
        requests = 0 if limit is None or limit * elapsed >= requests else requests - limit * elapsed
        return now, requests, tokens, given_back

    def _write(self, base: int, now: int, requests: int, tokens: int, seen: int) -> None:
        """In this order a worker that is killed between two words may cost the key some of what it has paid off, and
        never lends it any."""
        words = self._words
        words[base + UPDATED] = now
        words[base + SEEN] = seen
        words[base + REQUESTS] = requests
        words[base + TOKENS] = tokens if tokens < MAX_DEBT else MAX_DEBT


def _obstacle(limits: Limits, requests: int, tokens: int, running: int, estimate: int) -> tuple[str, int] | None:
    """The limit that keeps a request out for longest, and for how many microseconds; None where it may come in."""
    found: list[tuple[str, int]] = []
    limit = limits.concurrent
    if limit is not None and running >= limit:
        found.append(("concurrent", CONCURRENT_RETRY_US))
    limit = limits.requests_per_minute
    if limit is not None:
        excess = requests + MINUTE_US - limit * MINUTE_US
        if excess > 0:
            found.append(("requests", -(-excess // limit)))
    limit = limits.tokens_per_minute
    if limit is not None:
        # More than the bucket holds never fits: such a request waits until nothing is owed, and no longer.
        excess = min(tokens + (estimate - limit) * MINUTE_US, tokens)
        if excess > 0:
            found.append(("tokens", -(-excess // limit)))
    return max(found, key=lambda obstacle: obstacle[1]) if found else None


_PHRASES = {
    "requests": "{limits.requests_per_minute} requests per minute",
    "tokens": "{limits.tokens_per_minute} tokens per minute",
    "concurrent": "{limits.concurrent} requests at the same time",
}


def _refusal(limits: Limits, requests: int, tokens: int, limit: str, wait_us: int) -> RateLimited:
    lines = header_lines(limits, requests, tokens).splitlines()
    pairs = (line.partition(b": ") for line in lines)
    return RateLimited(
        f"This API key is limited to {_PHRASES[limit].format(limits=limits)}; try again in {wait_us / 1e6:.3g} s.",
        limit=limit,
        retry_after_seconds=wait_us / 1e6,
        headers=tuple((name, value) for name, _, value in pairs),
    )


def _too_many(cap: int, estimate: int) -> TooManyTokens:
    return TooManyTokens(
        f"This API key may ask for at most {cap} tokens per request, prompt and answers together; this one could take "
        f"about {estimate}. Send a shorter prompt or a smaller `max_tokens`.",
        param="max_tokens",
    )


def header_lines(limits: Limits, requests: int, tokens: int) -> bytes:
    """The x-ratelimit lines for debts of so many requests and tokens: what the bucket holds, what is left in it (whole
    units, 0 while it is overdrawn) and the time until it is full again."""
    values: tuple[int | bytes, ...] = ()
    limit = limits.requests_per_minute
    if limit is not None:
        values = _left_and_reset(limit, requests)
    limit = limits.tokens_per_minute
    if limit is not None:
        values += _left_and_reset(limit, tokens)
    return limits.header_template % values


def _left_and_reset(limit: int, debt: int) -> tuple[int, bytes]:
    return max(limit - -(-debt // MINUTE_US), 0), duration(-(-debt // (limit * 1000)))


@lru_cache(maxsize=4096)
def duration(milliseconds: int) -> bytes:
    """As OpenAI's x-ratelimit-reset headers have it: `120ms`, `8.64s`, `6m0s`."""
    if milliseconds < 1000:
        return b"%dms" % milliseconds
    minutes, milliseconds = divmod(milliseconds, 60_000)
    seconds, milliseconds = divmod(milliseconds, 1000)
    text = b"%d" % seconds if not milliseconds else (b"%d.%03d" % (seconds, milliseconds)).rstrip(b"0")
    return b"%dm%bs" % (minutes, text) if minutes else text + b"s"
