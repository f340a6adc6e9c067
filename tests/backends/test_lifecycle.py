from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import BackendState
from backends.lifecycle import (
    FIRST_DELAY_SECONDS,
    MAX_DELAY_SECONDS,
    MAX_FIRST_STARTS,
    STEADY_SECONDS,
    TRANSITIONS,
    Event,
    InvalidTransition,
    Lifecycle,
)

ALL_PAIRS = list(itertools.product(BackendState, Event))


def _ready() -> Lifecycle:
    lifecycle = Lifecycle()
    lifecycle.on(Event.START)
    lifecycle.on(Event.BECAME_READY)
    return lifecycle


def _crash(lifecycle: Lifecycle, *, exit_code: int | None = -9, ready_seconds: float = 0.0) -> float | None:
    lifecycle.on(Event.EXITED)
    delay_seconds = lifecycle.restart_delay_seconds(exit_code, ready_seconds)
    if delay_seconds is not None:
        lifecycle.on(Event.START)
    return delay_seconds


@pytest.mark.parametrize(("state", "event"), ALL_PAIRS, ids=[f"{state}-{event}" for state, event in ALL_PAIRS])
def test_table_is_followed_and_anything_else_refused(state: BackendState, event: Event) -> None:
    lifecycle = Lifecycle(state)
    if (state, event) in TRANSITIONS:
        assert lifecycle.on(event) is TRANSITIONS[state, event]
    else:
        with pytest.raises(InvalidTransition, match=f"{event} while {state}"):
            lifecycle.on(event)
        assert lifecycle.state is state


def test_every_state_can_be_left_for_stopped() -> None:
    for state in BackendState:
        lifecycle = Lifecycle(state)
        if state is BackendState.STOPPED:
            continue
        if state is not BackendState.DRAINING:
            lifecycle.on(Event.DRAIN)
        assert lifecycle.on(Event.STOPPED) is BackendState.STOPPED


def test_only_became_ready_leads_to_ready() -> None:
    ways = [event for (_, event), state in TRANSITIONS.items() if state is BackendState.READY]
    assert ways == [Event.BECAME_READY]


def test_delays_double_up_to_the_longest() -> None:
    lifecycle = _ready()
    delays = [_crash(lifecycle) for _ in range(9)]
    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


@pytest.mark.parametrize(
    ("ready_seconds", "following"), [(STEADY_SECONDS - 0.1, 2.0), (STEADY_SECONDS, 0.5), (1e9, 0.5)]
)
def test_a_steady_minute_makes_the_next_delay_short_again(ready_seconds: float, following: float) -> None:
    lifecycle = _ready()
    assert [_crash(lifecycle), _crash(lifecycle)] == [0.5, 1.0]
    lifecycle.on(Event.BECAME_READY)
    assert _crash(lifecycle, ready_seconds=ready_seconds) == following


@pytest.mark.parametrize("exit_code", [1, 2])
def test_a_model_that_does_not_load_is_not_tried_again(exit_code: int) -> None:
    lifecycle = Lifecycle()
    lifecycle.on(Event.START)
    assert _crash(lifecycle, exit_code=exit_code) is None
    assert lifecycle.state is BackendState.FAILED


@pytest.mark.parametrize("exit_code", [-9, -11, 0, 134, None])
def test_a_first_start_ended_from_outside_is_tried_a_few_times(exit_code: int | None) -> None:
    lifecycle = Lifecycle()
    lifecycle.on(Event.START)
    delays = [_crash(lifecycle, exit_code=exit_code) for _ in range(MAX_FIRST_STARTS)]
    assert delays == [0.5, 1.0, None]
    assert lifecycle.starts == MAX_FIRST_STARTS


@pytest.mark.parametrize("exit_code", [-9, 0, 1, 2, None])
def test_an_engine_that_was_ready_once_is_always_started_again(exit_code: int | None) -> None:
    lifecycle = _ready()
    assert all(_crash(lifecycle, exit_code=exit_code) is not None for _ in range(100))


def test_stop_forgets_the_past() -> None:
    lifecycle = _ready()
    for _ in range(5):
        _crash(lifecycle)
    lifecycle.on(Event.DRAIN)
    lifecycle.on(Event.STOPPED)
    assert lifecycle == Lifecycle(was_ready=True), "that its model loads is not forgotten"


@given(st.lists(st.tuples(st.sampled_from(Event), st.sampled_from([-9, 0, 1, 2, None]), st.floats(0, 1e6))))
def test_no_sequence_of_events_breaks_it(story: list[tuple[Event, int | None, float]]) -> None:
    lifecycle = Lifecycle()
    for event, exit_code, ready_seconds in story:
        before = lifecycle.state
        try:
            after = lifecycle.on(event)
        except InvalidTransition:
            assert (before, event) not in TRANSITIONS
            assert lifecycle.state is before
            continue
        assert after is lifecycle.state is TRANSITIONS[before, event]
        if event is Event.EXITED:
            delay_seconds = lifecycle.restart_delay_seconds(exit_code, ready_seconds)
            assert delay_seconds is None or FIRST_DELAY_SECONDS <= delay_seconds <= MAX_DELAY_SECONDS
            assert delay_seconds is not None or not lifecycle.was_ready
        if before is BackendState.STOPPED:
            assert event in (Event.START, Event.DRAIN)
