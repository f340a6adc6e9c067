"""Any order of reserving, settling and waiting, at any worker, against a model in exact fractions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import RateLimited
from gateway.limits import Limits
from gateway.ratelimit import RateLimiter, Reservation
from gateway.ratelimit_store import LimitStore
from tests.gateway.metering import Clock, Meter, fields

WORKERS = 3
LIMITS = st.builds(
    Limits,
    requests_per_minute=st.none() | st.integers(1, 12),
    tokens_per_minute=st.none() | st.integers(1, 500),
    concurrent=st.none() | st.integers(1, 4),
)
# (what, worker, figure): wait so many microseconds, reserve so many tokens, settle one of the open reservations.
STEPS = st.lists(
    st.tuples(st.just("wait"), st.just(0), st.integers(0, 90_000_000))
    | st.tuples(st.just("reserve"), st.integers(0, WORKERS - 1), st.integers(0, 700))
    | st.tuples(st.sampled_from(["settle", "keep"]), st.integers(0, 9), st.integers(0, 900)),
    max_size=60,
)


@dataclass
class Bucket:
    """The textbook's: `level` units are left of `limit`."""

    limit: int
    level: Fraction = field(init=False)

    def __post_init__(self) -> None:
        self.level = Fraction(self.limit)

    def wait(self, microseconds: int) -> None:
        self.level = min(self.level + Fraction(self.limit * microseconds, 60_000_000), Fraction(self.limit))

    def wait_for(self, units: int) -> Fraction:
        """Microseconds until `units` can be taken, all there is being enough for more."""
        return max(min(Fraction(units), Fraction(self.limit)) - self.level, Fraction(0)) * 60_000_000 / self.limit


class Model:
    """What the limiter should do."""

    def __init__(self, limits: Limits) -> None:
        self.requests = Bucket(limits.requests_per_minute) if limits.requests_per_minute else None
        self.tokens = Bucket(limits.tokens_per_minute) if limits.tokens_per_minute else None
        self.concurrent = limits.concurrent
        self.running = 0

    def wait(self, microseconds: int) -> None:
        for bucket in (self.requests, self.tokens):
            if bucket is not None:
                bucket.wait(microseconds)

    def obstacles(self, tokens: int) -> dict[str, Fraction]:
        found = {}
        if self.concurrent is not None and self.running >= self.concurrent:
            found["concurrent"] = Fraction(1_000_000)
        if self.requests is not None and self.requests.wait_for(1):
            found["requests"] = self.requests.wait_for(1)
        if self.tokens is not None and self.tokens.wait_for(tokens):
            found["tokens"] = self.tokens.wait_for(tokens)
        return found

    def take(self, tokens: int) -> None:
        self.running += 1
        if self.requests is not None:
            self.requests.level -= 1
        if self.tokens is not None:
            self.tokens.level -= tokens

    def settle(self, estimate: int, actual: int | None) -> None:
        self.running -= 1
        if self.tokens is not None and actual is not None:
            self.tokens.level = min(self.tokens.level + estimate - actual, Fraction(self.tokens.limit))


class Bench:
    """Three workers of one store beside the model."""

    def __init__(self, limits: Limits) -> None:
        store = LimitStore(4, WORKERS)
        self.clock = Clock()
        self.principal = Meter(limits, store).principal
        self.workers = [RateLimiter(store, worker, self.clock) for worker in range(WORKERS)]
        self.model = Model(limits)
        self.open: list[tuple[Reservation, int]] = []

    def step(self, what: str, number: int, figure: int) -> None:
        if what == "wait":
            self.clock.now_us += figure
            self.model.wait(figure)
        elif what == "reserve":
            self.reserve(number, figure)
        elif self.open:
            reservation, estimate = self.open.pop(number % len(self.open))
            actual = None if what == "keep" else figure
            reservation.settle(actual)
            self.model.settle(estimate, actual)

    def reserve(self, worker: int, tokens: int) -> None:
        obstacles = self.model.obstacles(tokens)
        if not obstacles:
            reservation = self.workers[worker].reserve(self.principal, tokens)
            self.model.take(tokens)
            self.open.append((reservation, tokens))
            self.check_headers(fields(reservation.header_lines()))
            return
        with pytest.raises(RateLimited) as caught:
            self.workers[worker].reserve(self.principal, tokens)
        assert caught.value.limit in obstacles
        # Rounded up to the microsecond, never down.
        assert 0 <= round(caught.value.retry_after_seconds * 1e6) - max(obstacles.values()) < 1
        self.check_headers(fields(b"".join(b"%b: %b\r\n" % header for header in caught.value.headers)))

    def check_headers(self, headers: dict[str, str]) -> None:
        for kind, bucket in (("requests", self.model.requests), ("tokens", self.model.tokens)):
            if bucket is not None:
                assert headers[f"limit-{kind}"] == str(bucket.limit)
                assert headers[f"remaining-{kind}"] == str(max(bucket.level.__floor__(), 0))


@given(LIMITS, STEPS)
def test_every_decision_figure_and_wait_is_the_models(limits: Limits, steps: Sequence[tuple[str, int, int]]) -> None:
    bench = Bench(limits)
    for step in steps:
        bench.step(*step)


@given(st.integers(1, 20), st.lists(st.tuples(st.integers(0, 30_000_000), st.integers(1, 10)), max_size=40))
def test_no_window_admits_more_than_the_limit_and_its_refill(limit: int, arrivals: list[tuple[int, int]]) -> None:
    meter = Meter(Limits(requests_per_minute=limit))
    admitted: list[int] = []
    for pause_us, burst in arrivals:
        meter.clock.now_us += pause_us
        for _ in range(burst):
            try:
                meter.reserve()
            except RateLimited:
                break
            admitted.append(meter.clock.now_us)
    for first, last in combinations(range(len(admitted)), 2):
        window_us = admitted[last] - admitted[first]
        assert last - first + 1 <= limit + Fraction(limit * window_us, 60_000_000)


@given(
    st.lists(st.tuples(st.integers(0, 300), st.none() | st.integers(0, 300)), min_size=1, max_size=30),
    st.randoms(use_true_random=False),
)
def test_settling_in_any_order_takes_what_was_used(requests: list[tuple[int, int | None]], random: object) -> None:
    limit = 100_000
    bench = Bench(Limits(tokens_per_minute=limit))
    reserved = [
        (bench.workers[number % WORKERS].reserve(bench.principal, estimate), actual)
        for number, (estimate, actual) in enumerate(requests)
    ]
    random.shuffle(reserved)  # type: ignore[attr-defined]
    for reservation, actual in reserved:
        reservation.settle(actual)
    used = sum(estimate if actual is None else actual for estimate, actual in requests)
    headers = fields(bench.workers[0].reserve(bench.principal, 0).header_lines())
    assert headers["remaining-tokens"] == str(limit - used)


@given(LIMITS, st.integers(0, 700), STEPS)
def test_who_waits_as_told_comes_in(limits: Limits, tokens: int, steps: Sequence[tuple[str, int, int]]) -> None:
    bench = Bench(Limits(limits.requests_per_minute, limits.tokens_per_minute))
    for step in steps:
        bench.step(*step)
    try:
        bench.workers[0].reserve(bench.principal, tokens)
    except RateLimited as error:
        bench.clock.now_us += round(error.retry_after_seconds * 1e6)
        bench.workers[1].reserve(bench.principal, tokens)


@given(STEPS)
def test_concurrent_requests_never_exceed_the_limit_at_any_worker(steps: Sequence[tuple[str, int, int]]) -> None:
    bench = Bench(Limits(concurrent=3))
    for step in steps:
        bench.step(*step)
        assert bench.model.running == len(bench.open) <= 3
    for reservation, _ in bench.open:
        reservation.settle(None)
    for number in range(3):
        bench.workers[number].reserve(bench.principal, 0)
