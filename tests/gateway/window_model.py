"""A model that knows when each unit was taken, and a limiter beside it that has to do the same. Used by properties."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

import pytest
from hypothesis import strategies as st

from gateway.auth import Principal
from gateway.errors import RateLimited
from gateway.limits import Limits
from tests.gateway.metering import Clock, fields

SECOND_US, MINUTE_US, DAY_US = 1_000_000, 60_000_000, 86_400_000_000
WORKERS = 3
LIMITS = st.builds(
    Limits,
    requests_per_minute=st.none() | st.integers(1, 12),
    tokens_per_minute=st.none() | st.integers(1, 500),
    concurrent=st.none() | st.integers(1, 4),
    tokens_per_day=st.none() | st.integers(1, 2000),
)
# (what, number, figure): wait so many microseconds; reserve so many tokens at a worker; settle one of the open
# reservations to so many, as estimated, or as served by nobody.
Step = tuple[str, int, int]


def _steps(part_us: int) -> st.SearchStrategy[list[Step]]:
    """By the parts of a minute or a day, often those where windows meet."""
    meeting = st.sampled_from([1, 2, 30, 59, 60, 61]).map(lambda parts: parts * part_us)
    pauses = meeting | st.integers(0, 20 * part_us) | st.integers(0, 150 * part_us)
    tokens = st.integers(0, 60) | st.integers(0, 700)
    return st.lists(
        st.tuples(st.just("wait"), st.just(0), pauses.map(lambda pause_us: pause_us // 1000 * 1000))
        | st.tuples(st.just("reserve"), st.integers(0, WORKERS - 1), tokens)
        | st.tuples(st.sampled_from(["settle", "keep", "unserved"]), st.integers(0, 9), tokens),
        max_size=60,
    )


STEPS = st.sampled_from([SECOND_US, 1440 * SECOND_US]).flatmap(_steps)


def walk(seed: int, part_us: int, steps: int) -> Iterator[Step]:
    """A long one, in which about half of the requests are admitted by WALKED, and settled long afterwards."""
    random = Random(seed)
    for _ in range(steps):
        pause_us = random.choice([0, 1, 2, 5, 59, 60, 61]) * part_us if random.random() < 0.5 else 0
        yield "wait", 0, pause_us or random.randrange(0, 9 * part_us, 1000)
        yield "reserve", random.randrange(WORKERS), random.randrange(40)
        if random.random() < 0.7:
            yield "reserve", random.randrange(WORKERS), random.randrange(150)
        if random.random() < 0.7:
            yield random.choice(["settle", "settle", "keep", "unserved"]), random.randrange(10), random.randrange(60)


WALKED = Limits(requests_per_minute=8, tokens_per_minute=200, tokens_per_day=500)


class Admitted(Protocol):
    """A Reservation, or a Lease."""

    def header_lines(self) -> bytes: ...

    def settle(self, actual_tokens: int | None, *, served: bool = True) -> None: ...


class Worker(Protocol):
    """A RateLimiter, or what asks one at Redis."""

    def reserve(self, principal: Principal, estimated_tokens: int) -> Admitted: ...


@dataclass
class Window:
    """What counts towards `limit` in `width_us`, by when it was taken; `name` is the limit's."""

    name: str
    limit: int
    width_us: int
    taken: list[tuple[int, int]] = field(default_factory=list)

    @property
    def part_us(self) -> int:
        return self.width_us // 60

    def counted(self, now_us: int) -> int:
        """In the part of now, and the sixty before it."""
        return sum(units for at_us, units in self.taken if at_us // self.part_us + 60 >= now_us // self.part_us)

    def wait_us(self, units: int, now_us: int) -> int:
        """Until `units` fit, or nothing counts."""
        starts = {now_us, *((at_us // self.part_us + 61) * self.part_us for at_us, _ in self.taken)}
        return next(
            start_us - now_us
            for start_us in sorted(start_us for start_us in starts if start_us >= now_us)
            if (counted := self.counted(start_us)) + units <= self.limit or not counted
        )

    def until_empty_us(self, now_us: int) -> int:
        return max(
            ((at_us // self.part_us + 61) * self.part_us - now_us for at_us, units in self.taken if units), default=0
        )

    def inside(self, end_us: int) -> list[int]:
        """What was taken in the window that ends then, both its ends included. Knows nothing of parts."""
        return [units for at_us, units in self.taken if end_us - self.width_us <= at_us <= end_us and units]


class Bench:
    """Workers that share their counts, and what the model says they do."""

    def __init__(self, principal: Principal, workers: Sequence[Worker], clock: Clock) -> None:
        self.clock = clock
        self.limits = limits = principal.limits
        self.principal = principal
        self.workers = workers
        self.open: list[tuple[Admitted, int, int]] = []
        figures = (
            ("requests", limits.requests_per_minute, MINUTE_US),
            ("tokens", limits.tokens_per_minute, MINUTE_US),
            ("tokens_per_day", limits.tokens_per_day, DAY_US),
        )
        self.windows = [Window(name, limit, width_us) for name, limit, width_us in figures if limit is not None]

    def step(self, what: str, number: int, figure: int) -> None:
        if what == "wait":
            self.clock.now_us += figure
        elif what == "reserve":
            self.reserve(number, figure)
        elif self.open:
            actual = {"settle": figure, "keep": None, "unserved": 0}[what]
            self.settle(number % len(self.open), actual, served=what != "unserved")

    def obstacles(self, tokens: int) -> dict[str, int]:
        now_us = self.clock.now_us
        units = {"requests": 1, "tokens": tokens, "tokens_per_day": tokens}
        found = {window.name: window.wait_us(units[window.name], now_us) for window in self.windows}
        if self.limits.concurrent is not None and len(self.open) >= self.limits.concurrent:
            found["concurrent"] = SECOND_US
        return {name: wait_us for name, wait_us in found.items() if wait_us}

    def reserve(self, worker: int, tokens: int) -> None:
        obstacles = self.obstacles(tokens)
        if obstacles:
            with pytest.raises(RateLimited) as caught:
                self.workers[worker % len(self.workers)].reserve(self.principal, tokens)
            assert obstacles[caught.value.limit] == max(obstacles.values())
            assert round(caught.value.retry_after_seconds * 1e6) == max(obstacles.values())
            self.check_headers(fields(b"".join(b"%b: %b\r\n" % header for header in caught.value.headers)))
            return
        reservation = self.workers[worker % len(self.workers)].reserve(self.principal, tokens)
        self.open.append((reservation, tokens, self.clock.now_us))
        for window in self.windows:
            window.taken.append((self.clock.now_us, 1 if window.name == "requests" else tokens))
            # Never above the limit, in whatever window; one request may be, alone.
            inside = window.inside(self.clock.now_us)
            assert sum(inside) <= window.limit or len(inside) == 1
        self.check_headers(fields(reservation.header_lines()))

    def settle(self, number: int, actual: int | None, *, served: bool) -> None:
        reservation, estimate, taken_us = self.open.pop(number)
        reservation.settle(actual, served=served)
        for window in self.windows:
            was = 1 if window.name == "requests" else estimate
            is_ = was if actual is None or (window.name == "requests" and served) else actual
            if is_ < was:
                window.taken[window.taken.index((taken_us, was))] = (taken_us, is_)
            elif is_ > was:
                window.taken.append((self.clock.now_us, is_ - was))

    def check_headers(self, headers: dict[str, str]) -> None:
        minute_first = {window.name.partition("_")[0]: window for window in reversed(self.windows)}
        assert {name.partition("-")[2] for name in headers} == set(minute_first)
        for kind, window in minute_first.items():
            assert headers[f"limit-{kind}"] == str(window.limit)
            assert headers[f"remaining-{kind}"] == str(max(window.limit - window.counted(self.clock.now_us), 0))
            reset_ms = -(-max(window.until_empty_us(self.clock.now_us), 0) // 1000)
            assert milliseconds(headers[f"reset-{kind}"]) == reset_ms


def milliseconds(text: str) -> int:
    """Of `120ms`, `8.64s`, `6m0s`."""
    if text.endswith("ms"):
        return int(text[:-2])
    minutes, _, seconds = text[:-1].rpartition("m")
    return int(minutes or 0) * 60_000 + round(float(seconds) * 1000)
