"""Decisions by table, and what holds for every decision."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.base import InferenceRequest, Operation
from config.routing import GraduateSettings, ModelRoutingSettings, RoutingSettings
from config.tree import Profile
from routing.ask import Ask, number_of, prefix_affinity
from routing.fastest import DWELL_SECONDS
from routing.pace import Pace
from routing.policy import POLICIES, Decision, decide, next_stage, plan_for
from routing.replicas import ORDERS
from routing.signals import GGUF, VLLM, Obstacle, Signals, Stage, UpstreamSignals
from tests.routing.moments import moment, plan, seen

ASK = Ask("m")
FULL, STARTING, DOWN, TRIED = Obstacle.FULL, Obstacle.STARTING, Obstacle.DOWN, Obstacle.TRIED
BUSY = Stage(VLLM)


def lately(first: float, whole: float, crowd: int = 1, now: float = 1000.0, times: int = 1) -> Pace:
    """So many answers in such a crowd took so many seconds to their first token, and to their end."""
    pace = Pace()
    for _ in range(times):
        pace = pace.with_answer(now, whole, first, 0, crowd)
    return pace


def answered(*answers: tuple[float, float | None, int]) -> Pace:
    """After answers that took so long, and so long to their first token, in crowds of so many."""
    pace = Pace()
    for whole, first, crowd in answers:
        pace = pace.with_answer(990.0, whole + (first or 0.0), first, 20, crowd)
    return pace


def decision(policy: str, *upstreams: UpstreamSignals, ask: Ask = ASK, **fields: Any) -> tuple[tuple[int, ...], str]:
    found = decide(plan(policy=policy), moment(*upstreams, **fields), ask)
    return found.upstreams, found.reason


@pytest.mark.parametrize(
    ("policy", "gguf", "vllm", "expected"),
    [
        ("graduate", seen(), seen(VLLM), ((0, 1), "quiet")),
        ("graduate", seen(outstanding=2), seen(VLLM), ((0, 1), "quiet")),
        ("graduate", seen(outstanding=3), seen(VLLM), ((1, 0), "busy")),
        ("graduate", seen(outstanding=2), seen(VLLM, 1), ((1, 0), "busy")),
        ("graduate", seen(outstanding=3), seen(VLLM, 0, STARTING), ((0,), "bridge")),
        ("graduate", seen(outstanding=3), seen(VLLM, 0, DOWN), ((0,), "failover")),
        ("graduate", seen(outstanding=9), seen(VLLM, 9, FULL), ((0,), "spill")),
        ("graduate", seen(outstanding=1, obstacle=FULL), seen(VLLM), ((1,), "spill")),
        ("graduate", seen(obstacle=TRIED), seen(VLLM), ((1,), "failover")),
        ("graduate", seen(obstacle=FULL), seen(VLLM, 0, DOWN), ((), "wait")),
        ("gguf_first", seen(outstanding=9), seen(VLLM), ((0, 1), "preferred")),
        ("gguf_first", seen(obstacle=FULL), seen(VLLM), ((1,), "spill")),
        ("vllm_first", seen(), seen(VLLM, 99), ((1, 0), "preferred")),
        ("vllm_first", seen(), seen(VLLM, 0, STARTING), ((0,), "bridge")),
        ("least_load", seen(outstanding=2), seen(VLLM, 1), ((1, 0), "least_load")),
        ("least_load", seen(outstanding=2, slots=16), seen(VLLM, 1, slots=2), ((0, 1), "least_load")),
        ("least_load", seen(obstacle=FULL), seen(VLLM, 0, DOWN), ((), "wait")),
        ("fastest", seen(pace=lately(0.5, 2)), seen(VLLM, pace=lately(0.2, 1)), ((1, 0), "fastest")),
        ("fastest", seen(pace=lately(0.5, 2)), seen(VLLM), ((1, 0), "fastest")),
        (
            "fastest",
            seen(pace=lately(0.5, 2)),
            seen(VLLM, 4, slots=2, pace=lately(0.2, 1)),
            ((0, 1), "fastest"),
        ),
    ],
)
def test_policy_orders_the_kinds_and_says_why(
    policy: str, gguf: UpstreamSignals, vllm: UpstreamSignals, expected: tuple[tuple[int, ...], str]
) -> None:
    assert decision(policy, gguf, vllm) == expected


def test_what_was_slow_under_load_is_not_slow_without() -> None:
    was_busy = seen(pace=lately(0.9, 2, crowd=30))
    vllm = seen(VLLM, 1, pace=lately(0.2, 2, crowd=2))
    assert decision("fastest", was_busy, vllm)[0] == (0, 1)
    busy_again = seen(outstanding=10, pace=lately(0.9, 2, crowd=30))
    assert decision("fastest", busy_again, vllm)[0] == (1, 0)


def test_a_slow_upstream_is_tried_again_after_a_while() -> None:
    slow, usual = seen(pace=lately(5.0, 9)), seen(VLLM, pace=lately(0.5, 2))
    assert decision("fastest", slow, usual)[0] == (1, 0)
    kept_busy = seen(VLLM, pace=lately(0.5, 2, now=1240))
    assert decision("fastest", slow, kept_busy, now=1240.0)[0] == (0, 1)


def test_on_the_same_cores_each_crowd_is_doubted_by_itself() -> None:
    """What was slow in a large crowd is tried in one again, although it answers in small ones all the time."""
    stage, vllm = Stage(GGUF, 1000.0, second=1000.0), lately(3.0, 9, crowd=16, times=1000)

    def first(now: float) -> int:
        gguf = seen(outstanding=15, pace=lately(2.0, 9, crowd=16, now=now, times=48), shares_cores=True)
        other = seen(VLLM, pace=vllm.with_answer(now, 9, 1.0, 0, 1), shares_cores=True)
        return decision("fastest", gguf, other, now=now, stage=stage)[0][0]

    assert first(1300.0) == 0
    assert first(1900.0) == 1


def test_on_the_same_cores_what_few_answers_said_is_doubted_sooner() -> None:
    usual = seen(pace=lately(1.0, 9, now=1200.0, times=3), shares_cores=True)

    def first(answers: int) -> int:
        stage = Stage(GGUF, 1000.0, second=1000.0)
        vllm = seen(VLLM, pace=lately(1.5, 9, times=answers), shares_cores=True)
        return decision("fastest", usual, vllm, now=1200.0, stage=stage)[0][0]

    assert (first(1), first(100)) == (1, 0)


def test_on_the_same_cores_the_first_engine_is_not_left_for_its_first_answer() -> None:
    stage, now = Stage(VLLM), 1000.0
    chosen = []
    for pace in (Pace(), lately(5.0, 9, times=3), lately(5.0, 9, times=3)):
        engines = seen(shares_cores=True), seen(VLLM, pace=pace, shares_cores=True)
        found = decide(plan(policy="fastest"), moment(*engines, now=now, stage=stage), ASK)
        stage, now = found.stage, now + 0.6
        chosen.append(stage.kind)
    assert chosen == [VLLM, VLLM, GGUF]


@pytest.mark.parametrize(
    ("crowd", "minutes", "first"),
    [
        pytest.param(1, 0.5, GGUF, id="few"),
        pytest.param(15, 0.5, GGUF, id="not so few"),
        pytest.param(15, 3, VLLM, id="not so few for a while"),
        pytest.param(31, 0.5, VLLM, id="many"),
        pytest.param(1, 10, VLLM, id="few for long"),
    ],
)
def test_on_the_same_cores_vllm_is_first_tried_for_many_or_after_a_while(
    crowd: int, minutes: float, first: str
) -> None:
    """Trying it moves the whole load, and with few there is little to batch."""
    now = 1000.0 + 60 * minutes
    pace = Pace()
    for there in (1, 2, 4, 8, 16, 32):
        for _ in range(3 * there):
            pace = pace.with_answer(now, 9.0, 0.1 * there, 0, there)
    engines = seen(outstanding=crowd, pace=pace, shares_cores=True), seen(VLLM, shares_cores=True)
    found = decide(plan(policy="fastest"), moment(*engines, now=now, stage=Stage(GGUF, 1000.0, second=now)), ASK)
    assert found.stage.kind == first


@pytest.mark.parametrize(
    ("answers", "size", "crowd_before", "faster", "first"),
    [
        pytest.param(47, 16, 16, 0.5, GGUF, id="few answers"),
        pytest.param(48, 16, 0, 0.5, VLLM, id="enough"),
        pytest.param(999, 8, 8, 0.5, GGUF, id="more than were met"),
        pytest.param(999, 8, 15, 0.5, VLLM, id="they were there before"),
        pytest.param(1, 8, 0, 0.2, VLLM, id="far faster"),
    ],
)
def test_on_the_same_cores_an_engine_may_first_show_what_it_does_in_a_crowd(
    answers: int, size: int, crowd_before: int, faster: float, first: str
) -> None:
    there = 16 if size == 16 else 15
    stage = Stage(GGUF, 1000.0, second=1010.0, crowd=there, crowd_before=crowd_before)
    gguf = seen(outstanding=there - 1, pace=lately(1.0, 9, crowd=size, now=1010.0, times=answers), shares_cores=True)
    vllm = seen(VLLM, pace=lately(faster, 9, crowd=size, now=1010.0, times=99), shares_cores=True)
    found = decide(plan(policy="fastest"), moment(gguf, vllm, now=1010.0, stage=stage), ASK)
    assert found.stage.kind == first


def test_on_the_same_cores_a_crowd_that_grows_for_ever_is_not_waited_for() -> None:
    stage = Stage(GGUF, 1000.0, second=1010.0, crowd=60, crowd_before=40)
    pace = lately(1.0, 9, crowd=16, times=48).with_answer(1010.0, 9, 4.0, 0, 50)
    vllm = seen(VLLM, pace=lately(2.0, 9, crowd=50, now=1010.0, times=99), shares_cores=True)
    gguf = seen(outstanding=59, pace=pace, shares_cores=True)
    found = decide(plan(policy="fastest"), moment(gguf, vllm, now=1010.0, stage=stage), ASK)
    assert found.stage.kind == VLLM


@pytest.mark.parametrize("policy", POLICIES)
def test_a_feature_that_one_kind_lacks_goes_to_the_other(policy: str) -> None:
    ask = ASK._replace(features=frozenset({"images"}))
    gguf, vllm = seen(lacks=frozenset({"images"})), seen(VLLM, 50)
    assert decision(policy, gguf, vllm, ask=ask)[0] == (1,)
    assert decision(policy, gguf, seen(VLLM, 0, DOWN), ask=ask) == ((), "wait")
    assert decision(policy, gguf, ask=ask) == ((), "incapable")
    if policy == "graduate":
        assert decision(policy, gguf, seen(VLLM), ask=ask)[1] == "capability"


def test_models_override_the_policy() -> None:
    own = ModelRoutingSettings(policy="vllm_first", graduate=GraduateSettings(to_vllm_at=9))
    found = plan_for("m", RoutingSettings(policy="gguf_first", replicas="power_of_two"), own)
    assert (found.policy, found.replicas, found.graduate.to_vllm_at) == ("vllm_first", "power_of_two", 9)


@pytest.mark.parametrize(("profile", "policy"), [("auto", "graduate"), ("prod", "vllm_first"), ("dev", "gguf_first")])
def test_without_a_policy_the_profile_has_one(profile: Profile, policy: str) -> None:
    assert plan_for("m", profile=profile).policy == policy
    assert plan_for("m", RoutingSettings(policy="fastest"), profile=profile).policy == "fastest"


def test_graduate_goes_back_only_after_a_quiet_dwell_time() -> None:
    graduate = GraduateSettings(to_vllm_at=4, back_to_gguf_at=2, dwell_seconds=10)

    def step(stage: Stage, now: float, load: int) -> Stage:
        return next_stage(graduate, moment(seen(outstanding=load - 1), seen(VLLM), now=now, stage=stage))

    stage = step(Stage(GGUF), 0, 4)
    assert stage == Stage(VLLM, 0, 0, crowd=4)
    stage = step(stage, 9, 32)
    stage = step(stage, 11, 1)
    assert stage.kind == VLLM, "a batch that ends leaves a moment of quiet"
    stage = step(stage, 12, 3)
    stage = step(stage, 21, 2)
    assert stage.kind == VLLM
    stage = step(stage, 22, 2)
    assert stage.kind == GGUF
    assert step(stage, 31, 50).kind == GGUF, "not within the dwell time"
    assert step(stage, 32, 4).kind == VLLM


def test_graduate_stays_where_long_batches_end_together() -> None:
    """32 answers of 30 s each: when they have ended the next request finds an idle model, and it was busy just now."""
    graduate = GraduateSettings(to_vllm_at=4, back_to_gguf_at=2, dwell_seconds=10)
    stage = Stage(VLLM, 0, 0, crowd=4)
    for wave in range(4):
        began, ended = 30.0 * wave, 30.0 * wave + 29.9
        for load in range(1, 33):
            engines = seen(), seen(VLLM, load - 1, pace=lately(0.1, 30, now=began - 0.1))
            stage = next_stage(graduate, moment(*engines, now=began, stage=stage))
            assert stage.kind == VLLM
    engines = seen(), seen(VLLM, pace=lately(0.1, 30, now=ended))
    assert next_stage(graduate, moment(*engines, now=ended + 9, stage=stage)).kind == VLLM
    assert next_stage(graduate, moment(*engines, now=ended + 10, stage=stage)).kind == GGUF, "quiet since the last"


@given(
    graduate=st.builds(
        lambda back, gap, dwell: GraduateSettings(to_vllm_at=back + gap, back_to_gguf_at=back, dwell_seconds=dwell),
        st.integers(0, 10),
        st.integers(1, 10),
        st.floats(0, 60),
    ),
    moments=st.lists(st.tuples(st.floats(0, 20), st.integers(0, 40), st.integers(0, 10)), max_size=60),
)
def test_graduate_never_moves_twice_within_the_dwell_time(
    graduate: GraduateSettings, moments: list[tuple[float, int, int]]
) -> None:
    now, stage, moves = 0.0, Stage(GGUF), []
    for pause, outstanding, waiting in moments:
        now += pause
        after = next_stage(graduate, moment(seen(outstanding=outstanding), now=now, stage=stage, waiting=waiting))
        if after.kind != stage.kind:
            moves.append(now)
            load = outstanding + waiting + 1
            assert load >= graduate.to_vllm_at if after.kind == VLLM else load <= graduate.back_to_gguf_at
        stage = after
    assert all(later - earlier >= graduate.dwell_seconds for earlier, later in pairwise(moves))


UPSTREAMS = st.lists(
    st.builds(
        seen,
        st.sampled_from([GGUF, VLLM]),
        st.integers(0, 300),
        st.sampled_from(Obstacle),
        slots=st.sampled_from([1.0, 4.0, 256.0, float("inf")]),
        pace=st.lists(st.tuples(st.floats(0, 60), st.none() | st.floats(0, 10), st.integers(0, 5000)), max_size=4).map(
            lambda answers: answered(*answers)
        ),
        shares_cores=st.booleans(),
        lacks=st.sampled_from([frozenset(), frozenset({"images"})]),
        seed=st.integers(0, 2**30 - 1),
    ),
    min_size=1,
    max_size=16,
)
RULES = st.lists(
    st.fixed_dictionaries({"use": st.sampled_from(["gguf", "vllm"]), "when": st.just({"prompt_tokens_over": 10})}),
    max_size=2,
)


@given(
    policy=st.sampled_from(list(POLICIES)),
    replicas=st.sampled_from(list(ORDERS)),
    rules=RULES,
    upstreams=UPSTREAMS,
    chance=st.floats(0, 1, exclude_max=True),
    stage=st.sampled_from([Stage(GGUF), Stage(VLLM)]),
    ask=st.builds(
        Ask,
        st.just("m"),
        st.integers(0, 20),
        features=st.sampled_from([frozenset(), frozenset({"images"}), frozenset({"tools"})]),
        affinity=st.integers(0, 2**30 - 1),
    ),
)
def test_every_decision_names_each_free_and_able_upstream_once_and_no_other(  # noqa: PLR0917 - by keyword
    policy: str,
    replicas: str,
    rules: list[dict[str, Any]],
    upstreams: list[UpstreamSignals],
    chance: float,
    stage: Stage,
    ask: Ask,
) -> None:
    signals = moment(*upstreams, chance=chance, stage=stage)
    the_plan = plan(policy=policy, replicas=replicas, rules=rules)
    found = decide(the_plan, signals, ask)
    assert found == decide(the_plan, signals, ask), "a decision can be repeated"
    free = {
        index
        for index, upstream in enumerate(upstreams)
        if upstream.obstacle is Obstacle.NONE and ask.features.isdisjoint(upstream.lacks)
    }
    assert len(set(found.upstreams)) == len(found.upstreams)
    assert set(found.upstreams) <= free, "never an unhealthy or full one, never one that lacks a feature"
    if not rules:
        assert bool(found.upstreams) == bool(free)
    assert found.reason.replace("_", "").isalpha()


def affine(upstreams: list[UpstreamSignals], affinity: int) -> int:
    signals = moment(*upstreams)
    the_plan = plan(policy="vllm_first", replicas="prefix_affinity")
    found: Decision = decide(the_plan, signals, ASK._replace(affinity=affinity))
    return upstreams[found.upstreams[0]].seed


@settings(max_examples=30)
@given(count=st.integers(2, 16), salt=st.integers())
def test_a_replica_that_joins_takes_its_share_and_nothing_else_moves(count: int, salt: int) -> None:
    seeds = [number_of(f"http://gpu-{number}:8000".encode()) for number in range(count)]
    keys = [number_of(f"{salt} {number}".encode()) for number in range(600)]
    replicas = [seen(VLLM, seed=seed) for seed in seeds]
    before = [affine(replicas[:-1], key) for key in keys]
    after = [affine(replicas, key) for key in keys]
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) <= {seeds[-1]}, "what moves goes to the new one"
    # A binomial share of 1/n; five standard deviations are the slack.
    share = 1 / count
    assert len(moved) / len(keys) <= share + 5 * (share * (1 - share) / len(keys)) ** 0.5


@pytest.mark.parametrize("count", [2, 5, 16])
def test_prompts_that_are_nearly_the_same_spread_evenly(count: int) -> None:
    replicas = [seen(VLLM, seed=number_of(f"http://gpu-{number}:8000".encode())) for number in range(count)]
    prompts = 200 * count
    taken: Counter[int] = Counter()
    for number in range(prompts):
        body = b'{"model":"m","messages":[{"role":"user","content":"Question %d"}]}' % number
        asked = InferenceRequest(Operation.CHAT, "m", body, False, "r")
        taken[affine(replicas, prefix_affinity(asked))] += 1
    share = 1 / count
    slack = 5 * (prompts * share * (1 - share)) ** 0.5
    assert len(taken) == count
    assert all(abs(number - prompts * share) <= slack for number in taken.values()), taken


@given(loads=st.lists(st.integers(0, 50), min_size=2, max_size=16), affinity=st.integers(0, 2**30 - 1))
def test_affinity_yields_before_one_replica_carries_too_much(loads: list[int], affinity: int) -> None:
    replicas = [seen(VLLM, load, seed=number + 1) for number, load in enumerate(loads)]
    chosen = affine(replicas, affinity) - 1
    assert loads[chosen] + 1 <= 1.25 * (sum(loads) + 1) / len(loads) + 1


@given(UPSTREAMS, st.floats(0, 1, exclude_max=True))
def test_power_of_two_never_takes_the_busiest_of_three(upstreams: list[UpstreamSignals], chance: float) -> None:
    free = [
        upstream._replace(kind=VLLM, obstacle=Obstacle.NONE, share=upstream.outstanding + 1.0) for upstream in upstreams
    ]
    signals: Signals = moment(*free, chance=chance)
    found = decide(plan(policy="vllm_first", replicas="power_of_two"), signals, ASK)
    loads = [upstream.outstanding for upstream in free]
    assert len(loads) < 2 or loads[found.upstreams[0]] <= loads[found.upstreams[1]]


@given(
    st.lists(
        st.tuples(st.floats(0, 2), st.integers(0, 40), st.floats(0.001, 1), st.integers(0, 40), st.floats(0.001, 1)),
        max_size=60,
    )
)
def test_fastest_never_moves_engines_on_the_same_cores_twice_within_its_dwell_time(
    moments: list[tuple[float, int, float, int, float]],
) -> None:
    now, stage, moved = 1000.0, Stage(GGUF), []
    for pause, load, first, other_load, other_first in moments:
        now += pause
        gguf = seen(outstanding=load, pace=lately(first, 2, now=now), shares_cores=True)
        vllm = seen(VLLM, other_load, pace=lately(other_first, 2, now=now), shares_cores=True)
        found = decide(plan(policy="fastest"), moment(gguf, vllm, now=now, stage=stage), ASK)
        assert found.upstreams[0] == (found.stage.kind == VLLM)
        if found.stage.kind != stage.kind:
            moved.append(now)
        stage = found.stage
    assert all(later - earlier >= DWELL_SECONDS for earlier, later in pairwise(moved))
