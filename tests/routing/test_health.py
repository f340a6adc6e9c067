"""The breaker by its clock, and what an upstream makes of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import BackendState
from config.routing import BreakerSettings
from routing import budget as budgets
from routing.adaptive import START, AdaptiveLimit
from routing.budget import RetryBudget
from routing.health import Breaker, BreakerState
from routing.signals import Obstacle
from routing.upstream import Upstream
from tests.fakes import FakeBackend

SETTINGS = BreakerSettings(failures=3, open_seconds=1, max_open_seconds=5, slow_start_seconds=10)


def test_it_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(SETTINGS)
    for outcome in (breaker.failed, breaker.failed, breaker.succeeded, breaker.failed, breaker.failed):
        outcome(0.0)
    assert (breaker.state(0.0), breaker.clear) == (BreakerState.CLOSED, True)
    breaker.failed(0.0)
    assert (breaker.state(0.0), breaker.clear, breaker.admits(0.0)) == (BreakerState.OPEN, False, False)


def opened() -> Breaker:
    breaker = Breaker(SETTINGS)
    for _ in range(3):
        breaker.failed(0.0)
    return breaker


def test_half_open_lets_one_trial_through_at_a_time() -> None:
    breaker = opened()
    assert (breaker.state(1.0), breaker.admits(1.0)) == (BreakerState.HALF_OPEN, True)
    breaker.begin(1.0)
    assert not breaker.admits(1.0)
    breaker.undecided()
    assert breaker.admits(1.1), "a trial whose client left says nothing"
    breaker.begin(1.1)
    breaker.succeeded(1.2)
    assert (breaker.state(1.2), breaker.admits(1.2), breaker.clear) == (BreakerState.CLOSED, True, False)
    assert breaker.warmth(6.2) == pytest.approx(0.5)
    breaker.refresh(11.3)
    assert breaker.clear


def test_each_failed_trial_doubles_the_time_up_to_a_bound() -> None:
    breaker, now, times = opened(), 0.0, []
    for _ in range(6):
        times.append(breaker.free_in_seconds(now))
        now += times[-1]
        breaker.begin(now)
        breaker.failed(now)
    assert times == [1, 2, 4, 5, 5, 5]


def test_answers_from_before_it_opened_change_nothing() -> None:
    breaker = opened()
    breaker.succeeded(0.5)
    breaker.failed(0.6)
    assert breaker.free_in_seconds(0.6) == pytest.approx(0.4)


def test_an_upstream_that_asks_for_rest_gets_it() -> None:
    upstream = Upstream(FakeBackend())
    upstream.breaker.rest(0.0, 7)
    assert upstream.look(6.9).obstacle is Obstacle.RESTING
    assert upstream.breaker.free_in_seconds(3.0) == 4
    assert upstream.look(7.1).obstacle is Obstacle.NONE


def test_an_upstream_that_has_come_back_gets_its_share_step_by_step() -> None:
    backend = FakeBackend(state=BackendState.STARTING)
    upstream, other = Upstream(backend, limit=100), Upstream(FakeBackend())
    pool = (upstream, other)
    upstream.adopt(SETTINGS, 2.0, 1)
    assert upstream.look(0.0, pool).obstacle is Obstacle.STARTING
    backend.state = BackendState.READY
    room = []
    for now in (1.0, 3.0, 6.0, 11.0):
        upstream.in_flight = 0
        while upstream.in_flight < 100 and upstream.look(now, pool).obstacle is Obstacle.NONE:
            upstream.in_flight += 1
        room.append(upstream.in_flight)
    assert room == [1, 13, 32, 100]


@pytest.mark.parametrize("trouble", ["alone", "starting", "open", "came back as well"])
def test_it_gets_its_share_at_once_where_no_other_can_serve_meanwhile(trouble: str) -> None:
    upstream, other = Upstream(FakeBackend(), limit=100), FakeBackend()
    beside = Upstream(other)
    pool = (upstream,) if trouble == "alone" else (upstream, beside)
    upstream.breaker.came_back(0.0)
    upstream.in_flight = 99
    assert upstream.look(0.0, (upstream, Upstream(FakeBackend()))).obstacle is Obstacle.FULL
    if trouble == "starting":
        other.state = BackendState.STARTING
    elif trouble == "open":
        for _ in range(20):
            beside.failed(0.0)
    else:
        beside.breaker.came_back(0.0)
    assert upstream.look(0.0, pool).obstacle is Obstacle.NONE


def test_an_engine_that_was_started_again_unseen_has_come_back() -> None:
    backend = FakeBackend()
    upstream = Upstream(backend, limit=100)
    assert upstream.look(0.0).obstacle is Obstacle.NONE
    backend.restarts += 1
    upstream.in_flight = 50
    assert upstream.look(0.0, (upstream, Upstream(FakeBackend()))).obstacle is Obstacle.FULL


def test_an_engine_that_will_be_started_again_counts_as_starting() -> None:
    class Restarting(FakeBackend):
        gave_up = False

    backend = Restarting(state=BackendState.FAILED)
    assert Upstream(backend).look(0.0).obstacle is Obstacle.STARTING
    backend.gave_up = True
    assert Upstream(backend).look(0.0).obstacle is Obstacle.DOWN


def test_workers_share_a_limit() -> None:
    upstream = Upstream(FakeBackend(), limit=10)
    upstream.adopt(SETTINGS, 2.0, 4)
    upstream.adopt(SETTINGS, 2.0, 4)
    assert upstream.limit == 3


@given(requests=st.lists(st.booleans(), max_size=400), share=st.floats(0, 1))
def test_retries_stay_within_their_share(requests: list[bool], share: float) -> None:
    budget = RetryBudget(share)
    for wants_more in requests:
        budget.earn()
        while wants_more and budget.spend():
            pass
    assert budget.spent <= budgets.START + share * len(requests) + 1e-6


def test_what_was_saved_is_bounded() -> None:
    budget = RetryBudget(1.0)
    for _ in range(10_000):
        budget.earn()
    spent = 0
    while budget.spend():
        spent += 1
    assert spent == budgets.MOST


def test_the_adaptive_limit_finds_what_an_engine_can_do() -> None:
    """An engine whose first token takes 0.1 s for each request at once, beyond one second too long: ten at once."""
    limit, now, seen = AdaptiveLimit(1.0), 0.0, []
    for _ in range(3000):
        in_flight = int(limit.value)
        now += 0.1
        limit.answered(now, 0.1 * in_flight, in_flight)
        seen.append(limit.value)
    assert 8 <= min(seen[300:]) < max(seen[300:]) <= 11.5


def test_the_adaptive_limit_rises_only_while_it_is_used_up() -> None:
    limit = AdaptiveLimit(1.0)
    for now in range(100):
        limit.answered(now, 0.1, 2)
    assert limit.value == START
