"""What is kept of answers, and what is expected where nothing was measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.lane import Lane, crowd_of
from routing.pace import UNKNOWN, Pace
from routing.policy import plan_for
from routing.signals import GGUF, VLLM, Stage
from routing.upstream import Upstream, UpstreamPool
from tests.fakes import FakeBackend


def measured(*firsts: tuple[int, float], times: int = 1, steady: bool = False) -> Pace:
    """First tokens that took so long in such crowds, each measured so often."""
    pace = Pace()
    for crowd, seconds in firsts * times:
        pace = pace.with_answer(1000.0, 2 * seconds, seconds, 0, crowd, steady=steady)
    return pace


def test_nothing_is_expected_of_the_unknown() -> None:
    assert Pace().in_crowd(1) is UNKNOWN
    assert measured((0, 0.5)).in_crowd(1) is UNKNOWN, "that said nothing about a crowd"


def test_what_was_measured_in_a_crowd_holds_for_that_crowd() -> None:
    pace = measured((1, 0.01), (32, 0.15), times=9)
    assert pace.in_crowd(1).first_token_seconds == pytest.approx(0.01)
    assert pace.in_crowd(32).first_token_seconds == pytest.approx(0.15)


def test_one_measurement_is_extended_by_roots_of_the_crowd() -> None:
    """The third one upwards, but within a step of two the root."""
    pace = measured((4, 0.1))
    assert pace.in_crowd(16).first_token_seconds == pytest.approx(0.1 * 4 ** (1 / 3), rel=0.1)
    assert pace.in_crowd(1).first_token_seconds == pytest.approx(0.05)


@pytest.mark.parametrize(("at_eight", "at_thirty_two"), [(0.08, 0.32), (0.01, 0.01), (0.001, 0.001)])
def test_two_are_extended_as_they_differ_within_reason(at_eight: float, at_thirty_two: float) -> None:
    """In proportion, hardly at all, and not as if more requests made an engine faster: but within a step of two the
    root stays."""
    found = measured((1, 0.01), (8, at_eight)).in_crowd(32).first_token_seconds
    assert at_thirty_two * 0.8 <= found <= at_thirty_two * 1.25


def test_below_what_was_measured_a_part_of_a_turn_stays_whatever_the_crowd() -> None:
    """0.05 s for a turn and 0.005 s for each that is in it. Never less than in proportion."""
    pace = measured((8, 0.09), (16, 0.13))
    assert pace.in_crowd(1).first_token_seconds == pytest.approx(0.055, rel=0.1)
    assert measured((8, 0.08), (16, 0.2)).in_crowd(1).first_token_seconds == pytest.approx(0.01)


def test_two_crowds_of_hardly_different_size_say_nothing_about_a_larger_one() -> None:
    pace = measured((14, 0.10), (16, 0.15))
    assert pace.in_crowd(32).first_token_seconds == pytest.approx(0.15 * 2 ** (1 / 3), rel=0.1)
    assert measured((4, 0.05), (14, 0.10), (16, 0.15)).in_crowd(32).first_token_seconds > 0.2


@pytest.mark.parametrize("crowd", [1, 16])
def test_in_a_steady_average_all_that_are_there_at_once_count_as_one(crowd: int) -> None:
    """A moment in which the machine is three times as slow is one for all of them."""
    pace = measured((crowd, 0.1), times=40 * crowd, steady=True)
    for _ in range(crowd):
        pace = pace.with_answer(1000.0, 0.6, 0.3, 0, crowd, steady=True)
    assert pace.in_crowd(crowd).first_token_seconds == pytest.approx(0.11, rel=0.01)


def test_short_answers_count_in_a_steady_average_by_the_time_they_took() -> None:
    """Half a second in which the machine is three times as slow, met by fifty answers one after the other."""
    pace = measured((1, 0.003), times=1000, steady=True)
    for _ in range(50):
        pace = pace.with_answer(1000.0, 0.010, 0.009, 0, 1, steady=True)
    assert pace.in_crowd(1).first_token_seconds == pytest.approx(0.004, rel=0.1)


def test_a_steady_average_forgets_the_first_round_and_those_after_it_count_alike() -> None:
    pace = measured(*[(4, 0.9)] * 4, (4, 0.3), (4, 0.1), (4, 0.2), steady=True)
    assert pace.in_crowd(4).first_token_seconds == pytest.approx(0.2)


def test_old_measurements_count_for_nothing_beside_a_new_one() -> None:
    pace = measured((16, 0.5), times=400, steady=True).with_answer(1200.0, 0.2, 0.1, 0, 16, steady=True)
    assert pace.in_crowd(16).first_token_seconds > 0.49
    assert pace.with_answer(1501.0, 0.2, 0.1, 0, 16, steady=True).in_crowd(16).first_token_seconds == pytest.approx(0.1)


def test_each_crowd_has_an_age_of_its_own_and_a_guess_is_as_old_as_the_first_one() -> None:
    pace = measured((1, 0.1))
    for now in (1010.0, 1020.0):
        pace = pace.with_answer(now, 0.2, 0.1, 0, 2)
    assert [pace.in_crowd(crowd).measured_at for crowd in (1, 2, 64)] == [1000.0, 1020.0, 1000.0]


@given(st.lists(st.tuples(st.integers(0, 10_000), st.floats(0, 100)), max_size=20), st.integers(1, 10_000))
def test_what_is_expected_is_within_reason_of_what_was_measured(answers: list[tuple[int, float]], crowd: int) -> None:
    found = measured(*answers).in_crowd(crowd)
    assert 0 <= found.first_token_seconds <= 10_000 * max((seconds for _, seconds in answers), default=0.0)
    assert found.inter_token_seconds == 0


def test_what_answers_took_beside_another_engine_on_the_same_cores_says_nothing_of_a_crowd() -> None:
    gguf, vllm = (Upstream(FakeBackend(kind), shares_cores=True) for kind in (GGUF, VLLM))
    elsewhere = Upstream(FakeBackend(VLLM))
    lane = Lane(UpstreamPool("m", (gguf, vllm, elsewhere)), plan_for("m"))
    lane.stage, now = Stage(GGUF, 1000.0), 1001.0
    vllm.answered(1000.0, 60.0, 1.0, 48, 0)
    gguf.in_flight = elsewhere.in_flight = 2
    assert tuple(lane.crowd(upstream, now) for upstream in (gguf, vllm, elsewhere)) == (2, 0, 2)
    vllm.in_flight = 1
    assert tuple(lane.crowd(upstream, now) for upstream in (gguf, vllm, elsewhere)) == (0, 0, 2)


def test_what_stays_at_an_engine_that_the_model_has_left_counts_at_the_other_one() -> None:
    """An open stream that nobody reads, or requests that a rule sends there."""
    gguf, vllm = (Upstream(FakeBackend(kind), shares_cores=True) for kind in (GGUF, VLLM))
    vllm.answered(1000.0, 5.0, 1.0, 48, 0)
    gguf.in_flight, vllm.in_flight = 7, 1
    stage = Stage(GGUF, 1000.0)
    assert crowd_of(gguf, (gguf, vllm), stage, 1009.0) == 0
    assert crowd_of(gguf, (gguf, vllm), stage, 1010.0) == 8
    assert crowd_of(vllm, (gguf, vllm), stage, 1010.0) == 0
