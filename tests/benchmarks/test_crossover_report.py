from __future__ import annotations

import json

import pytest

from tests.benchmarks.bench_engine_load import Exchange
from tests.benchmarks.crossover_report import Pass, Step, median, noise, report, steady, summary, verdicts


def exchange(sent_at: float, first_at: float, ended_at: float, backend: str = "gguf") -> Exchange:
    """A stream of two tokens."""
    events = [{"choices": [{"delta": {"content": "a"}}]}, {"choices": [], "usage": {"completion_tokens": 2}}]
    first, last = (b"data: " + json.dumps(event).encode() + b"\n\n" for event in events)
    fragments = [(first_at, first), (ended_at, last + b"data: [DONE]\n\n")]
    return Exchange(sent_at, ended_at, 200, fragments, "", backend)


def test_a_step_is_told_with_and_without_its_first_second() -> None:
    done = [exchange(10.0, 10.9, 11.5), exchange(11.5, 11.6, 13.0, "vllm"), exchange(10.0, 10.9, 10.95)]
    step = summary(3, done, 2, 10.0, 13.0)
    assert [step.requests, step.tokens_per_second, step.ttft_p95] == pytest.approx([3, 2.0, 0.9])
    assert step.settled is not None
    assert [step.settled.tokens_per_second, step.settled.ttft_p95] == pytest.approx([2.0, 0.1])
    assert [step.vllm_share, step.settled.vllm_share] == pytest.approx([1 / 3, 1.0])


def test_windows_of_one_load_count_whole() -> None:
    step = steady(2, [exchange(10.0, 10.1, 10.5), exchange(20.0, 20.3, 20.5)], 2, 2.0)
    assert [step.requests, step.tokens_per_second, step.ttft_p95] == pytest.approx([2, 2.0, 0.3])


def passes(policy: str, *figures: tuple[float, float]) -> Pass:
    steps = [Step(index + 1, 10, tokens, ttft, 0.0, 0) for index, (tokens, ttft) in enumerate(figures)]
    return Pass(policy, tuple(steps), 2, 100.0, 0.1)


def test_the_verdict_names_the_step_furthest_behind_the_better_engine() -> None:
    found = {
        "gguf": passes("gguf", (100, 0.1), (100, 0.1)),
        "vllm": passes("vllm", (50, 0.3), (200, 0.2)),
        "graduate": passes("graduate", (99, 0.12), (180, 0.2)),
    }
    assert verdicts(found) == [
        "graduate: at least 90% of the better engine's tokens/s (step 2, 2 clients), "
        "at most 1.20 times its p95 TTFT (step 1, 1 clients)"
    ]
    assert verdicts({"graduate": found["graduate"]}) == []
    assert "| same work at each step | 100 | 80 | 128 |" in report(found)


def test_medians_are_taken_figure_by_figure() -> None:
    rounds = [passes("gguf", (tokens, ttft)) for tokens, ttft in ((1, 0.3), (2, 0.1), (9, 0.2))]
    step = median(rounds).steps[0]
    assert (step.tokens_per_second, step.ttft_p95) == (2, 0.2)


def test_an_engine_is_held_against_itself_at_the_step_where_it_wavers_most() -> None:
    steps = [
        [Step(1, 10, tokens, ttft, 0.0, 0) for tokens, ttft in windows]
        for windows in (((100, 0.1), (95, 0.1), (100, 0.1), (95, 0.1)), ((80, 0.2), (100, 0.3), (80, 0.2), (100, 0.3)))
    ]
    assert noise("vllm", steps) == "vllm beside itself: at least 80% of its tokens/s, at most 1.50 times its p95 TTFT"
