"""Each condition, alone and together; what a rule does with what it matches."""

from __future__ import annotations

from typing import Any

import pytest

from config.routing import ModelRoutingSettings, RoutingSettings, WhenSettings
from routing.ask import Ask
from routing.pace import Pace
from routing.policy import decide, plan_for
from routing.rules import matches
from routing.signals import VLLM, Obstacle, UpstreamSignals
from tests.routing.moments import moment, plan, seen

ASK = Ask("m", 100, 50, frozenset({"tools"}), "alice", "batch")
SLOW = Pace(0.1, 0.01, 3.0)


@pytest.mark.parametrize(
    ("when", "holds"),
    [
        ({"prompt_tokens_over": 99}, True),
        ({"prompt_tokens_over": 100}, False),
        ({"max_tokens_over": 49}, True),
        ({"max_tokens_over": 50}, False),
        ({"features": ["images", "tools"]}, True),
        ({"features": ["images"]}, False),
        ({"key": "alice"}, True),
        ({"key": "bob"}, False),
        ({"key_tier": "batch"}, True),
        ({"key_tier": "interactive"}, False),
        ({"model": "m"}, True),
        ({"hours": [12, 13]}, True),
        ({"hours": [13, 24]}, False),
        ({"hours": [22, 13]}, True),
        ({"hours": [13, 12]}, False),
        ({"gguf_queue_seconds_over": 2.9}, True),
        ({"gguf_queue_seconds_over": 3}, False),
        ({"vllm_queue_seconds_over": 0}, False),
        ({"prompt_tokens_over": 99, "key": "bob"}, False),
        ({"prompt_tokens_over": 99, "key": "alice", "gguf_queue_seconds_over": 1}, True),
    ],
    ids=str,
)
def test_everything_a_rule_names_must_hold(when: dict[str, Any], holds: bool) -> None:
    # Two slots, three at work: one more waits for two of them to end, three seconds each.
    gguf = seen(outstanding=3, slots=2, pace=SLOW)
    assert matches(WhenSettings.model_validate(when), moment(gguf, seen(VLLM)), ASK) is holds


def test_no_bound_on_the_answer_is_more_than_any() -> None:
    assert matches(WhenSettings(max_tokens_over=10**9), moment(seen()), ASK._replace(max_tokens=None))


LONG = [{"when": {"prompt_tokens_over": 99}, "use": "vllm"}]


@pytest.mark.parametrize(
    ("vllm", "expected"),
    [
        (seen(VLLM), ((1, 0), "rule")),
        (seen(VLLM, 9, Obstacle.FULL), ((), "wait")),
        (seen(VLLM, 0, Obstacle.DOWN), ((0,), "failover")),
        (seen(VLLM, 0, Obstacle.STARTING), ((0,), "bridge")),
    ],
)
def test_a_rule_is_kept_as_long_as_its_backend_is_up(
    vllm: UpstreamSignals, expected: tuple[tuple[int, ...], str]
) -> None:
    found = decide(plan(policy="gguf_first", rules=LONG), moment(seen(), vllm), ASK)
    assert (found.upstreams, found.reason) == expected


def test_the_first_rule_that_matches_decides() -> None:
    rules = [{"when": {"key": "bob"}, "use": "reject"}, *LONG, {"when": {"key": "alice"}, "use": "reject"}]
    for key, reason in (("alice", "rule"), ("bob", "rejected")):
        found = decide(plan(rules=rules), moment(seen(), seen(VLLM)), ASK._replace(key=key))
        assert found.reason == reason


def test_rules_for_other_models_profiles_and_machines_are_left_out() -> None:
    rules = [
        {"when": {"model": "n"}, "use": "reject"},
        {"when": {"profile": "dev"}, "use": "reject"},
        {"when": {"model": "m", "profile": "prod"}, "use": "gguf"},
        {"when": {"gpu": True}, "use": "vllm"},
    ]
    routing = RoutingSettings.model_validate({"rules": rules})
    for has_gpu, uses in ((False, ["gguf"]), (True, ["gguf", "vllm"])):
        found = plan_for("m", routing, ModelRoutingSettings(), "prod", has_gpu=has_gpu)
        assert [rule.use for rule in found.rules] == uses
