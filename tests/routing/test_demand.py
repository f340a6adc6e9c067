"""Which engines that sleep are woken for a request."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.routing import Policy
from routing.ask import Ask
from routing.demand import wanted
from routing.policy import BRIDGE, WAIT, decide
from routing.signals import GGUF, VLLM, Obstacle, Signals, Stage, UpstreamSignals
from tests.routing.moments import moment, plan, seen

ASK = Ask("m")
ASLEEP, STARTING, FULL, DOWN = Obstacle.ASLEEP, Obstacle.STARTING, Obstacle.FULL, Obstacle.DOWN
UP = Obstacle.NONE


def woken(signals: Signals, ask: Ask = ASK, **routing: Any) -> set[str]:
    """Kinds of the engines that a request wakes."""
    asked = plan(**routing)
    decision = decide(asked, signals, ask)
    return {signals.upstreams[index].kind for index in wanted(asked, signals, ask, decision)}


def both(gguf: Obstacle, vllm: Obstacle, **fields: Any) -> Signals:
    return moment(seen(GGUF, obstacle=gguf), seen(VLLM, obstacle=vllm), **fields)


@pytest.mark.parametrize(
    ("policy", "gguf", "vllm", "expected"),
    [
        ("vllm_first", UP, ASLEEP, {VLLM}),
        ("vllm_first", ASLEEP, UP, set()),
        ("vllm_first", ASLEEP, FULL, {GGUF}),
        ("vllm_first", ASLEEP, DOWN, {GGUF}),
        ("vllm_first", ASLEEP, ASLEEP, {GGUF, VLLM}),
        ("vllm_first", ASLEEP, STARTING, {GGUF}),
        ("gguf_first", ASLEEP, UP, {GGUF}),
        ("gguf_first", UP, ASLEEP, set()),
        ("gguf_first", ASLEEP, ASLEEP, {GGUF}),
        ("gguf_first", STARTING, ASLEEP, set()),
        ("gguf_first", FULL, ASLEEP, {VLLM}),
        ("graduate", UP, ASLEEP, set()),
        ("fastest", UP, ASLEEP, set()),
        ("fastest", ASLEEP, FULL, {GGUF}),
        ("least_load", ASLEEP, UP, set()),
        ("least_load", DOWN, ASLEEP, {VLLM}),
    ],
)
def test_who_would_be_used_is_woken(policy: Policy, gguf: Obstacle, vllm: Obstacle, expected: set[str]) -> None:
    assert woken(both(gguf, vllm), policy=policy) == expected


def test_a_busy_model_wakes_vllm_and_gguf_serves_meanwhile() -> None:
    signals = both(UP, ASLEEP, outstanding=5, stage=Stage(VLLM, 990.0, 1000.0))
    assert woken(signals, policy="graduate") == {VLLM}
    decision = decide(plan(policy="graduate"), signals, ASK)
    assert (decision.upstreams, decision.reason) == ((0,), BRIDGE)


def test_a_rule_wakes_what_it_names_under_any_policy() -> None:
    rules = [{"when": {"prompt_tokens_over": 10}, "use": "vllm"}]
    long = ASK._replace(prompt_tokens=11)
    for policy in ("fastest", "gguf_first"):
        assert woken(both(UP, ASLEEP), long, policy=policy, rules=rules) == {VLLM}
        assert woken(both(UP, ASLEEP), policy=policy, rules=rules) == set()


def test_who_is_refused_wakes_nobody() -> None:
    rules = [{"when": {"prompt_tokens_over": 10}, "use": "reject"}]
    assert woken(both(ASLEEP, ASLEEP), ASK._replace(prompt_tokens=11), rules=rules) == set()


def test_only_one_that_has_the_feature_is_woken() -> None:
    signals = moment(seen(GGUF, obstacle=ASLEEP, lacks=frozenset({"images"})), seen(VLLM, obstacle=ASLEEP))
    assert woken(signals, ASK._replace(features=frozenset({"images"})), policy="gguf_first") == {VLLM}


def _upstreams() -> st.SearchStrategy[list[UpstreamSignals]]:
    one = st.builds(
        seen,
        st.sampled_from([GGUF, VLLM]),
        outstanding=st.integers(0, 9),
        obstacle=st.sampled_from(Obstacle),
        lacks=st.sampled_from([frozenset(), frozenset({"images"})]),
    )
    return st.lists(one, min_size=1, max_size=5)


@given(
    _upstreams(),
    st.sampled_from(["graduate", "gguf_first", "vllm_first", "fastest", "least_load"]),
    st.sampled_from([GGUF, VLLM]),
    st.booleans(),
)
def test_nobody_waits_for_an_engine_that_nobody_wakes(
    upstreams: list[UpstreamSignals], policy: Policy, kind: str, images: bool
) -> None:
    signals = moment(*upstreams, stage=Stage(kind, 999.0, 1000.0))
    ask = ASK._replace(features=frozenset({"images"} if images else ()))
    asked = plan(policy=policy)
    decision = decide(asked, signals, ask)
    found = wanted(asked, signals, ask, decision)
    able = [index for index, upstream in enumerate(upstreams) if ask.features.isdisjoint(upstream.lacks)]
    assert all(upstreams[index].obstacle is ASLEEP and index in able for index in found)
    coming = any(upstreams[index].obstacle in (STARTING, FULL, Obstacle.RESTING) for index in able)
    if decision.reason == WAIT and not coming:
        assert bool(found) == any(upstreams[index].obstacle is ASLEEP for index in able)
