"""What a bucket's debt means: who has to wait for how long, what a client is told of it. Pure.

Buckets are integers. A debt of a minute's microseconds per unit, paid off by the limit each microsecond, loses nothing
to rounding, and every figure in a header is right; a day's bucket counts in milliseconds, so that 63 bits hold it too.
Neighbours: limits.py (the figures), ratelimit.py (keeps the debts in memory), replicas/ (keeps them in Redis).
"""

from __future__ import annotations

from functools import lru_cache

from gateway.errors import RateLimited, TooManyTokens
from gateway.limits import Limits

# A bucket of `limit` units holds limit * MINUTE_US of debt and pays off `limit` per microsecond.
MINUTE_US = 60_000_000
# A bucket of `limit` tokens a day holds limit * DAY_MS and pays off `limit` per millisecond.
DAY_MS = 86_400_000
# Bounds what one request can be worth, so that debts stay below 2^63.
MAX_TOKENS = 1_000_000_000
MAX_DEBT = 2**62
# Nobody knows when a running request ends.
CONCURRENT_RETRY_US = 1_000_000

# The time in microseconds, the debts of requests, tokens and a day's tokens then, and the sum of the tokens given back
# that the latter two allow for.
Owed = tuple[int, int, int, int, int]
# The three debts alone.
Debts = tuple[int, int, int]
NO_DEBTS: Debts = (0, 0, 0)


def bounded(tokens: int) -> int:
    """`tokens` within 0 and MAX_TOKENS."""
    return tokens if 0 <= tokens <= MAX_TOKENS else min(max(tokens, 0), MAX_TOKENS)


def obstacle(limits: Limits, owed: Owed, running: int, estimate: int) -> tuple[str, int] | None:
    """The limit that keeps a request out for longest, and for how many microseconds; None where it may come in."""
    _, requests, tokens, day, _ = owed
    name, wait_us = "", 0
    limit = limits.concurrent
    if limit is not None and running >= limit:
        name, wait_us = "concurrent", CONCURRENT_RETRY_US
    limit = limits.requests_per_minute
    if limit is not None:
        excess = requests + MINUTE_US - limit * MINUTE_US
        if excess > wait_us * limit:
            name, wait_us = "requests", -(-excess // limit)
    limit = limits.tokens_per_minute
    if limit is not None:
        # More than the bucket holds never fits: such a request waits until nothing is owed, and no longer.
        excess = min(tokens + (estimate - limit) * MINUTE_US, tokens)
        if excess > wait_us * limit:
            name, wait_us = "tokens", -(-excess // limit)
    limit = limits.tokens_per_day
    if limit is not None:
        excess = min(day + (estimate - limit) * DAY_MS, day)
        if excess * 1000 > wait_us * limit:
            name, wait_us = "tokens_per_day", -(-excess // limit) * 1000
    return (name, wait_us) if name else None


_PHRASES = {
    "requests": "{limits.requests_per_minute} requests per minute",
    "tokens": "{limits.tokens_per_minute} tokens per minute",
    "tokens_per_day": "{limits.tokens_per_day} tokens per day",
    "concurrent": "{limits.concurrent} requests at the same time",
}


def refusal(whose: str, limits: Limits, limit: str, wait_us: int, lines: bytes) -> RateLimited:
    """The 429 for `limit` of `limits`, which are those of `whose`; `lines` are the key's x-ratelimit lines."""
    pairs = (line.partition(b": ") for line in lines.splitlines())
    phrase = _PHRASES[limit].format(limits=limits)
    seconds = f"{wait_us / 1e6:.3g}" if wait_us < 1e9 else f"{wait_us / 1e6:.0f}"
    return RateLimited(
        f"{whose} is limited to {phrase}; try again in {seconds} s.",
        limit=limit,
        retry_after_seconds=wait_us / 1e6,
        headers=tuple((name, value) for name, _, value in pairs),
    )


def check_cap(whose: str, limits: Limits, estimate: int) -> None:
    """Raises TooManyTokens where one request asks for more than `limits`, those of `whose`, ever allow at once."""
    cap = limits.max_tokens_per_request
    if cap is not None and estimate > cap:
        raise TooManyTokens(
            f"{whose} is limited to at most {cap} tokens per request, prompt and answers together; this one "
            f"could take about {estimate}. Send a shorter prompt or a smaller `max_tokens`.",
            param="max_tokens",
        )


def header_lines(limits: Limits, debts: Debts) -> bytes:
    """The x-ratelimit lines for such debts: what the bucket holds, what is left in it (whole units, 0 while it is
    overdrawn) and the time until it is full again. The tokens are a minute's, or a day's where only that is limited."""
    requests, tokens, day = debts
    values: tuple[int | bytes, ...] = ()
    limit = limits.requests_per_minute
    if limit is not None:
        values = _left_and_reset(limit, requests)
    limit = limits.tokens_per_minute
    if limit is not None:
        values += _left_and_reset(limit, tokens)
    elif limits.tokens_per_day is not None:
        limit = limits.tokens_per_day
        values += max(limit - -(-day // DAY_MS), 0), duration(-(-day // limit))
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
