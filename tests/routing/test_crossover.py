"""A load that steps from 1 to 32 clients and back, before models of the two engines."""

from __future__ import annotations

from statistics import median
from typing import Any

import pytest

from routing.signals import GGUF, VLLM
from routing.upstream import Upstream
from tests.fakes import FakeBackend
from tests.routing.engines import Engine, Lab, Request, figures, moves
from tests.routing.moments import plan

STEPS = (1, 2, 4, 8, 16, 32, 16, 8, 4, 2, 1)
ALONE = {kind: {"rules": [{"when": {"model": "m"}, "use": kind}]} for kind in (GGUF, VLLM)}
# The two of these models cross between 8 and 16.
GRADUATE = {"policy": "graduate", "graduate": {"to_vllm_at": 12, "back_to_gguf_at": 6, "dwell_seconds": 1.0}}
FASTEST = {"policy": "fastest"}

# GGUF and vLLM, as fast as the real ones on two cores (docs/routing.md).
ENGINES = ((0.0002, 0.0004, 0.005), (0.0022, 0.00018, 0.003))

Run = list[list[Request]]


def lab(routing: dict[str, Any], *, shared: bool, engines: Any = ENGINES, **machine: Any) -> Lab:
    gguf = Upstream(FakeBackend(GGUF), shares_cores=shared)
    vllm = Upstream(FakeBackend(VLLM), shares_cores=shared)
    models = [Engine(upstream, *seconds) for upstream, seconds in zip((gguf, vllm), engines, strict=True)]
    return Lab(plan(**routing), models, **machine)


def staircase(lab: Lab, seconds: float = 8.0) -> Run:
    return [lab.step(clients, seconds) for clients in STEPS]


def run(routing: dict[str, Any], *, seconds: float = 8.0, **machine: Any) -> Run:
    return staircase(lab(routing, **machine), seconds)


def whole(steps: Run) -> list[Request]:
    return [request for step in steps for request in step]


def share(kind: str, requests: list[Request]) -> float:
    return sum(request.kind == kind for request in requests) / len(requests)


def worst(steps: Run, alone: list[Run]) -> tuple[float, float]:
    """Over all steps, the least share of the tokens/s that the better engine alone had, and by what factor the p95 of
    the first tokens was longer than at one that had 90 % of these."""
    least, longest = 1.0, 0.0
    for step, *others in zip(steps, *alone, strict=True):
        mine, theirs = figures(step), [figures(other) for other in others]
        best = max(other.tokens_per_second for other in theirs)
        good = [other.p95 for other in theirs if other.tokens_per_second >= 0.9 * best]
        least, longest = min(least, mine.tokens_per_second / best), max(longest, mine.p95 / max(good))
    return least, longest


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("routing", [GRADUATE, FASTEST], ids=lambda routing: str(routing["policy"]))
def test_each_step_is_as_good_as_the_better_engine_and_the_whole_better(
    routing: dict[str, Any], *, shared: bool
) -> None:
    alone = [run(rules, shared=shared) for rules in ALONE.values()]
    under_test = lab(routing, shared=shared)
    first, steps = staircase(under_test), staircase(under_test)
    # A vLLM that was never asked is not tried for 16 at once.
    assert worst(first, alone)[0] >= (0.7 if shared and routing is FASTEST else 0.9)
    least, longest = worst(steps, alone)
    assert least >= 0.9
    assert longest <= 1.1
    mine, theirs = figures(whole(steps)), [figures(whole(other)) for other in alone]
    assert all(mine.tokens_per_second > 1.05 * other.tokens_per_second for other in theirs)
    assert len(whole(steps)) > 1000


@pytest.mark.parametrize("shared", [True, False])
def test_graduate_moves_once_there_and_once_back(*, shared: bool) -> None:
    assert list(moves(whole(run(GRADUATE, shared=shared)))) == [(GGUF, VLLM), (VLLM, GGUF)]


@pytest.mark.parametrize("seconds", [8.0, 30.0])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_fastest_moves_once_there_and_once_back_between_engines_on_the_same_cores(noise: float, seconds: float) -> None:
    """It does not try the one that it does not know before there is something to gain, nor again and again."""
    steps = run(FASTEST, shared=True, noise=noise, seconds=seconds)
    assert list(moves(whole(steps))) == [(GGUF, VLLM), (VLLM, GGUF)]


@pytest.mark.parametrize("slow", STEPS[:5])
def test_fastest_tries_vllm_for_many_whatever_the_minute_in_which_few_were_measured(slow: int) -> None:
    """The machine has other work in one step on the way up."""
    under_test = lab(FASTEST, shared=True)
    for clients in STEPS[:5]:
        if clients == slow:
            under_test.held_up = under_test.now, under_test.now + 8.0
        under_test.step(clients, 8.0)
    many = under_test.step(32, 9.0)
    assert share(VLLM, many[len(many) // 2 :]) > 0.8


@pytest.mark.parametrize("seed", range(4))
def test_fastest_does_not_flap_where_measurements_waver(seed: int) -> None:
    """It moves with the load alone, and does so before both engines are known."""
    machine: dict[str, Any] = {"shared": True, "noise": 0.5, "seed": seed, "busy": True}
    alone = [run(rules, **machine) for rules in ALONE.values()]
    under_test = lab(FASTEST, **machine)
    first, second = staircase(under_test), staircase(under_test)
    for steps in (first, second):
        assert list(moves(whole(steps))) == [(GGUF, VLLM), (VLLM, GGUF)]
    assert worst(second, alone)[0] >= 0.85


@pytest.mark.parametrize("kind", [GGUF, VLLM])
def test_fastest_leaves_a_slow_engine_though_a_stream_stays_open_at_the_other_one(kind: str) -> None:
    """Its answers tell how fast it is, with a client there that does not read on, or requests that a rule sends."""
    fast, slow = (0.0002, 0.0004, 0.005), (0.02, 0.004, 0.05)
    under_test = lab(FASTEST, shared=True, engines=(fast, slow) if kind == GGUF else (slow, fast))
    under_test.step(4, 5.0)
    next(engine.upstream for engine in under_test.engines if engine.upstream.kind == kind).in_flight += 1
    for clients in (32, 1):
        under_test.step(clients, 300.0)  # to try the one that was never asked
        assert share(kind, under_test.step(clients, 600.0)) > 0.9


@pytest.mark.parametrize("clients", [1, 32, 100])
def test_fastest_tries_an_engine_less_often_where_answers_take_long(clients: int) -> None:
    """Of 10 to 80 seconds: what it takes to learn how fast one is should not be most of what is done."""
    slow = tuple(tuple(100 * seconds for seconds in engine) for engine in ENGINES)
    under_test = lab(FASTEST, shared=True, engines=slow)
    under_test.step(clients, 3600.0)
    steps = [under_test.step(clients, 3600.0) for _ in range(2)]
    assert share(GGUF if clients == 1 else VLLM, whole(steps)) > 0.9


def test_fastest_spreads_the_load_over_engines_with_hardware_of_their_own() -> None:
    alone = [figures(whole(run(rules, shared=False))) for rules in ALONE.values()]
    both = [figures(whole(run(FASTEST, shared=False, noise=0.5, seed=seed))) for seed in range(5)]
    assert all(each.tokens_per_second > 1.3 * max(engine.tokens_per_second for engine in alone) for each in both)
    assert median(each.p95 for each in both) < 0.5 * min(engine.p95 for engine in alone)
