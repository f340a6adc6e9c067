"""What is kept of answers, and what is expected where nothing was measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.lane import Lane
from routing.pace import Pace
from routing.policy import GGUF, VLLM, plan_for
from routing.upstream import Upstream, UpstreamPool
from tests.fakes import FakeBackend


def measured(*firsts: tuple[int, float], times: int = 1) -> Pace:
    """First tokens that took so long in such crowds, each measured so often."""
    pace = Pace()
    for crowd, seconds in firsts * times:
        pace = pace.with_answer(1000.0, 2 * seconds, seconds, 0, crowd)
    return pace


def test_nothing_is_expected_of_the_unknown() -> None:
    assert Pace().in_crowd(1) == (0.0, 0.0)
    assert measured((0, 0.5)).in_crowd(1) == (0.0, 0.0), "that said nothing about a crowd"


def test_what_was_measured_in_a_crowd_holds_for_that_crowd() -> None:
    pace = measured((1, 0.01), (32, 0.15), times=9)
    assert pace.in_crowd(1)[0] == pytest.approx(0.01)
    assert pace.in_crowd(32)[0] == pytest.approx(0.15)


def test_one_measurement_is_extended_by_roots_of_the_crowd() -> None:
    """The third one upwards, but within a step of two the root."""
    pace = measured((4, 0.1))
    assert pace.in_crowd(16)[0] == pytest.approx(0.1 * 4 ** (1 / 3), rel=0.1)
    assert pace.in_crowd(1)[0] == pytest.approx(0.05)


@pytest.mark.parametrize(("at_eight", "at_thirty_two"), [(0.08, 0.32), (0.01, 0.01), (0.001, 0.001)])
def test_two_are_extended_as_they_differ_within_reason(at_eight: float, at_thirty_two: float) -> None:
    """In proportion, hardly at all, and not as if more requests made an engine faster: but within a step of two the
    root stays."""
    found = measured((1, 0.01), (8, at_eight)).in_crowd(32)[0]
    assert at_thirty_two * 0.8 <= found <= at_thirty_two * 1.25


@given(st.lists(st.tuples(st.integers(0, 10_000), st.floats(0, 100)), max_size=20), st.integers(1, 10_000))
def test_what_is_expected_is_within_reason_of_what_was_measured(answers: list[tuple[int, float]], crowd: int) -> None:
    first, between = measured(*answers).in_crowd(crowd)
    assert 0 <= first <= 10_000 * max((seconds for _, seconds in answers), default=0.0)
    assert between == 0


def test_what_answers_took_beside_another_engine_on_the_same_cores_says_nothing_of_a_crowd() -> None:
    gguf, vllm = (Upstream(FakeBackend(kind), shares_cores=True) for kind in (GGUF, VLLM))
    elsewhere = Upstream(FakeBackend(VLLM))
    lane = Lane(UpstreamPool("m", (gguf, vllm, elsewhere)), plan_for("m"))
    gguf.in_flight = elsewhere.in_flight = 2
    assert (lane.crowd(gguf), lane.crowd(vllm), lane.crowd(elsewhere)) == (2, 0, 2)
    vllm.in_flight = 1
    assert (lane.crowd(gguf), lane.crowd(vllm), lane.crowd(elsewhere)) == (0, 0, 2)
