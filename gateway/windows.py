"""What the counts of a window mean: who has to wait for how long, what a client is told of it. Pure.

A minute is counted in 60 parts of a second, a day in 60 parts of 24 minutes. What counts is the part that runs and the
60 before it: no window of a minute, or of a day, reaches beyond these, so none ever holds more than the limit, and
60/61 of it can be used for ever. Neighbours: limits.py (the figures), ratelimit_store.py (the counts in memory),
ratelimit.py (takes and gives back), replicas/ (the same at Redis).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple

from gateway.errors import RateLimited, TooManyTokens
from gateway.limits import Limits

# How many parts count: 60 full ones, and the one that is not over yet.
PARTS = 61
PART_NS = 1_000_000_000
# A part of a day, in parts of a minute: 24 minutes.
DAY_PART = 1440
# Bounds what one request can be worth, so that sums stay far below 2^63, and below the 2^53 of Redis' scripts.
MAX_TOKENS = 1_000_000_000
# Nobody knows when a running request ends.
CONCURRENT_RETRY_NS = 1_000_000_000

# What each part of a window holds, oldest first, the one of now last; empty where nothing is limited.
Parts = Sequence[int]
# What is counted together: requests, tokens, a day's tokens.
Counted = tuple[int, int, int]


class Rings(NamedTuple):
    """All that is counted of an account; `newest` is the number of the newest part of a minute."""

    newest: int
    requests: Parts
    tokens: Parts
    day: Parts


def bounded(tokens: int) -> int:
    """`tokens` within 0 and MAX_TOKENS."""
    return tokens if 0 <= tokens <= MAX_TOKENS else min(max(tokens, 0), MAX_TOKENS)


def hindrance(limits: Limits, rings: Rings, running: int, estimate: int, now_ns: int) -> tuple[str, int] | None:
    """The limit that keeps a request out for longest, and for how many ns; None where it may come in."""
    name, wait_ns = "", 0
    if limits.concurrent is not None and running >= limits.concurrent:
        name, wait_ns = "concurrent", CONCURRENT_RETRY_NS
    for kind, limit, parts, units, width in (
        ("requests", limits.requests_per_minute, rings.requests, 1, 1),
        ("tokens", limits.tokens_per_minute, rings.tokens, estimate, 1),
        ("tokens_per_day", limits.tokens_per_day, rings.day, estimate, DAY_PART),
    ):
        leaving = 0 if limit is None else _leaving(parts, max(limit - units, 0))
        if leaving:
            kind_ns = (rings.newest // width + leaving) * width * PART_NS - now_ns
            if kind_ns > wait_ns:
                name, wait_ns = kind, kind_ns
    return (name, wait_ns) if name else None


def _leaving(parts: Parts, most: int) -> int:
    """How many parts must have left before no more than `most` units are counted."""
    too_many = sum(parts) - most
    return 0 if too_many <= 0 else bisect_left(list(accumulate(parts)), too_many) + 1


_PHRASES = {
    "requests": "{limits.requests_per_minute} requests per minute",
    "tokens": "{limits.tokens_per_minute} tokens per minute",
    "tokens_per_day": "{limits.tokens_per_day} tokens per day",
    "concurrent": "{limits.concurrent} requests at the same time",
}


def refusal(whose: str, limits: Limits, limit: str, wait_ns: int, lines: bytes) -> RateLimited:
    """The 429 for `limit` of `limits`, which are those of `whose`; `lines` are the key's x-ratelimit lines."""
    pairs = (line.partition(b": ") for line in lines.splitlines())
    phrase = _PHRASES[limit].format(limits=limits)
    seconds = f"{wait_ns / 1e9:.3g}" if wait_ns < 1e12 else f"{wait_ns / 1e9:.0f}"
    return RateLimited(
        f"{whose} is limited to {phrase}; try again in {seconds} s.",
        limit=limit,
        retry_after_seconds=wait_ns / 1e9,
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


def standing(limits: Limits, rings: Rings, now_ns: int) -> bytes:
    """The x-ratelimit lines of whoever has these counts, as `header_lines` has them."""
    newest, requests, tokens, day = rings
    if limits.counts_minute:
        tokens_ns = _until_empty(tokens, newest, 1, now_ns)
    else:
        tokens_ns = _until_empty(day, newest // DAY_PART, DAY_PART, now_ns)
    counted = sum(requests), sum(tokens), sum(day)
    return header_lines(limits, counted, _until_empty(requests, newest, 1, now_ns), tokens_ns)


def _until_empty(parts: Parts, newest: int, width: int, now_ns: int) -> int:
    """In how many ns the last of `parts` leaves, each of them as wide as `width` parts of a minute."""
    for number in range(len(parts), 0, -1):
        if parts[number - 1]:
            return (newest + number) * width * PART_NS - now_ns
    return 0


def header_lines(limits: Limits, counted: Counted, requests_ns: int, tokens_ns: int) -> bytes:
    """The x-ratelimit lines for so much counted: the limit, what is left of it (0 while it is overdrawn) and the time
    until nothing is counted any more, which is in `requests_ns` and `tokens_ns`. The tokens are a minute's, or a day's
    where only that is limited."""
    requests, tokens, day = counted
    values: tuple[int | bytes, ...] = ()
    if (limit := limits.requests_per_minute) is not None:
        values = limit - requests if requests < limit else 0, duration(-(-requests_ns // 1_000_000))
    if (limit := limits.tokens_per_minute) is not None:
        values += limit - tokens if tokens < limit else 0, duration(-(-tokens_ns // 1_000_000))
    elif (limit := limits.tokens_per_day) is not None:
        values += limit - day if day < limit else 0, duration(-(-tokens_ns // 1_000_000))
    return limits.header_template % values


@lru_cache(maxsize=4096)
def duration(milliseconds: int) -> bytes:
    """As OpenAI's x-ratelimit-reset headers have it: `120ms`, `8.64s`, `6m0s`."""
    if milliseconds < 1000:
        return b"%dms" % milliseconds
    minutes, milliseconds = divmod(milliseconds, 60_000)
    seconds, milliseconds = divmod(milliseconds, 1000)
    text = b"%d" % seconds if not milliseconds else (b"%d.%03d" % (seconds, milliseconds)).rstrip(b"0")
    return b"%dm%bs" % (minutes, text) if minutes else text + b"s"
