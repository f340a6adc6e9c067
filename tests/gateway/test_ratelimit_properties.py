"""Any order of reserving, settling and waiting, at any worker, against a model that knows when each unit was taken."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import RateLimited
from gateway.limits import Limits
from gateway.ratelimit import RateLimiter
from gateway.ratelimit_store import LimitStore
from tests.gateway.metering import Clock, Meter, fields
from tests.gateway.window_model import DAY_US, LIMITS, MINUTE_US, SECOND_US, STEPS, WALKED, WORKERS, Bench, Step, walk


def bench_of(limits: Limits) -> Bench:
    """Three workers of one store."""
    store, clock = LimitStore(4, WORKERS), Clock()
    return Bench(
        Meter(limits, store).principal, [RateLimiter(store, worker, clock) for worker in range(WORKERS)], clock
    )


@given(LIMITS, STEPS)
def test_every_decision_figure_and_wait_is_the_models(limits: Limits, steps: Sequence[Step]) -> None:
    bench = bench_of(limits)
    for step in steps:
        bench.step(*step)


@pytest.mark.parametrize("part_us", [SECOND_US, 1440 * SECOND_US], ids=["minutes", "days"])
@pytest.mark.parametrize("seed", range(4))
def test_long_walk_is_the_models(seed: int, part_us: int) -> None:
    bench = bench_of(WALKED)
    for step in walk(seed, part_us, 400):
        bench.step(*step)


@given(
    st.integers(1, 20),
    st.sampled_from([SECOND_US, 1440 * SECOND_US]),
    st.lists(st.tuples(st.integers(0, 999_999), st.integers(0, 70), st.integers(1, 10)), max_size=60),
)
def test_no_window_wherever_it_begins_holds_more_than_the_limit(
    limit: int, part_us: int, arrivals: list[tuple[int, int, int]]
) -> None:
    minute = part_us == SECOND_US
    meter = Meter(Limits(requests_per_minute=limit) if minute else Limits(tokens_per_day=limit))
    admitted: list[int] = []
    for millionths, parts, burst in arrivals:
        meter.clock.now_us += parts * part_us + millionths * part_us // SECOND_US
        for _ in range(burst):
            try:
                meter.reserve(1)
            except RateLimited:
                break
            admitted.append(meter.clock.now_us)
    # The one after as many as the limit comes when more than a window has gone by since the first of them.
    for first, after in zip(admitted, admitted[limit:], strict=False):
        assert after - first > (MINUTE_US if minute else DAY_US)


@given(st.integers(1, 40), st.integers(0, SECOND_US - 1), st.sampled_from(["requests", "tokens", "tokens_per_day"]))
def test_of_each_limit_98_percent_are_used_while_somebody_always_waits(limit: int, start_us: int, kind: str) -> None:
    figures = {"requests": "requests_per_minute", "tokens": "tokens_per_minute", "tokens_per_day": "tokens_per_day"}
    meter = Meter(Limits(**{figures[kind]: 7 * limit}))
    width_us = DAY_US if kind == "tokens_per_day" else MINUTE_US
    meter.clock.now_us += start_us
    end_us = meter.clock.now_us + 61 * width_us
    used: list[int] = []
    while meter.clock.now_us < end_us:
        try:
            meter.reserve(7)
            used.append(1 if kind == "requests" else 7)
        except RateLimited as error:
            meter.clock.now_us += round(error.retry_after_seconds * 1e6)
    assert sum(used) >= 0.98 * 7 * limit * 61


@given(
    st.lists(st.tuples(st.integers(0, 300), st.none() | st.integers(0, 300)), min_size=1, max_size=30),
    st.randoms(use_true_random=False),
)
def test_settling_in_any_order_takes_what_was_used(requests: list[tuple[int, int | None]], random: object) -> None:
    limit = 100_000
    bench = bench_of(Limits(tokens_per_minute=limit))
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
def test_who_waits_as_told_comes_in_and_not_a_microsecond_before(
    limits: Limits, tokens: int, steps: Sequence[Step]
) -> None:
    bench = bench_of(Limits(limits.requests_per_minute, limits.tokens_per_minute, tokens_per_day=limits.tokens_per_day))
    for step in steps:
        bench.step(*step)
    try:
        bench.workers[0].reserve(bench.principal, tokens)
    except RateLimited as error:
        bench.clock.now_us += round(error.retry_after_seconds * 1e6) - 1
        with pytest.raises(RateLimited):
            bench.workers[2].reserve(bench.principal, tokens)
        bench.clock.now_us += 1
        bench.workers[1].reserve(bench.principal, tokens)


@given(STEPS)
def test_concurrent_requests_never_exceed_the_limit_at_any_worker(steps: Sequence[Step]) -> None:
    bench = bench_of(Limits(concurrent=3))
    for step in steps:
        bench.step(*step)
        assert len(bench.open) <= 3
    for reservation, *_ in bench.open:
        reservation.settle(None)
    for number in range(3):
        bench.workers[number].reserve(bench.principal, 0)


@given(st.lists(st.integers(0, 70), min_size=1, max_size=8), st.integers(0, 700))
def test_record_brought_up_to_date_in_one_step_or_in_many_is_the_same(parts: list[int], tokens: int) -> None:
    limits = Limits(requests_per_minute=100, tokens_per_minute=10_000, tokens_per_day=100_000)
    one, many = Meter(limits), Meter(limits)
    for meter in (one, many):
        for _ in range(61):
            meter.reserve(tokens % 17 + 1)
            meter.clock.pass_seconds(1)
    start = many.clock.now_us // SECOND_US
    stops = [start]
    for passed in parts:
        stops.append(stops[-1] + passed)
    for before, after in pairwise(stops):
        assert before <= after
        many.store.advance(many.principal.slot.base, after)
    one.store.advance(one.principal.slot.base, stops[-1])
    assert one.store.words.tobytes() == many.store.words.tobytes()
