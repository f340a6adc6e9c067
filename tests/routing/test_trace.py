"""Decisions written, read, kept within bounds, and made again."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.routing import RoutingSettings, TraceSettings
from routing.ask import Ask
from routing.policy import POLICIES, decide, plan_for
from routing.replay import replay
from routing.replicas import ORDERS
from routing.signals import GGUF, VLLM, Obstacle, Stage, UpstreamSignals
from routing.trace import Moment, TraceError, line_of, parse
from routing.tracefile import TraceFile
from tests.routing.moments import moment, plan, seen
from tests.routing.test_policy import UPSTREAMS

ASK = Ask("m", 12, None, frozenset({"tools"}), "alice", "batch", 77)


def traced(policy: str, signals: Any, **routing: Any) -> str:
    the_plan = plan(policy=policy, **routing)
    labels = [f"upstream {number}" for number in range(len(signals.upstreams))]
    return line_of(the_plan, Moment(labels, signals, ASK, decide(the_plan, signals, ASK)), 1.7e9)


@given(
    policy=st.sampled_from(list(POLICIES)),
    replicas=st.sampled_from(list(ORDERS)),
    upstreams=UPSTREAMS,
    kind=st.sampled_from([GGUF, VLLM]),
    chance=st.floats(0, 0.99),
)
def test_an_unchanged_configuration_changes_no_decision(
    policy: str, replicas: str, upstreams: list[UpstreamSignals], kind: str, chance: float
) -> None:
    signals = moment(*upstreams, stage=Stage(kind, 990.0, 995.5), chance=chance)
    one = parse(traced(policy, signals, replicas=replicas))
    assert (one.moment.signals, one.moment.ask) == (signals, ASK)
    result = replay([one], lambda _: plan(policy=policy, replicas=replicas))
    assert (result["m"].decisions, result["m"].changed) == (1, 0)


def test_replay_counts_what_another_policy_would_have_done() -> None:
    lines = [traced("gguf_first", moment(seen(outstanding=load), seen(VLLM), now=float(load))) for load in range(10)]
    result = replay(map(parse, lines), lambda _: plan(policy="graduate", graduate={"to_vllm_at": 4}))["m"]
    assert (result.decisions, result.changed) == (10, 10)
    assert result.changes == {
        (("gguf", "preferred"), ("gguf", "quiet")): 3,
        (("gguf", "preferred"), ("vllm", "busy")): 7,
    }
    assert replay(map(parse, lines), lambda _: None)["m"].decisions == 0


def test_no_policy_is_a_change_where_there_is_one_upstream() -> None:
    one = parse(traced("graduate", moment(seen())))
    assert one.moment.decision.reason == "only", "as its client was told"
    assert replay([one], lambda _: plan(policy="vllm_first"))["m"].changed == 0


def test_a_refusal_by_a_new_rule_is_a_change() -> None:
    rules = [{"when": {"key": "alice"}, "use": "reject"}]
    routing = RoutingSettings.model_validate({"policy": "gguf_first", "rules": rules})
    one = parse(traced("gguf_first", moment(seen(), seen(VLLM))))
    assert replay([one], lambda _: plan_for("m", routing))["m"].changes == {
        (("gguf", "preferred"), ("", "rejected")): 1
    }


@pytest.mark.parametrize("line", ["", "{}", "[1]", '{"order": [9]}', "nonsense", '{"upstreams": 1}', "[" * 100_000])
def test_what_is_no_decision_is_told(line: str) -> None:
    with pytest.raises(TraceError, match="is no traced decision"):
        parse(line)


def test_an_order_that_names_nobody_is_told() -> None:
    line = json.loads(traced("graduate", moment(seen())))
    with pytest.raises(TraceError):
        parse(json.dumps({**line, "order": [1]}))


async def test_the_file_is_bounded_and_turned_over(tmp_path: Path) -> None:
    signals = moment(seen(), seen(VLLM, 0, Obstacle.DOWN))
    the_plan = plan()
    file = TraceFile(TraceSettings(file=str(tmp_path / "trace.jsonl"), max_bytes=5000, keep=2))
    for _ in range(40):
        file.add(the_plan, Moment(["a", "b"], signals, ASK, decide(the_plan, signals, ASK)))
        file.flush()
    kept = sorted(tmp_path.iterdir())  # noqa: ASYNC240 - a test has time
    assert [path.name for path in kept] == ["trace.jsonl", "trace.jsonl.1", "trace.jsonl.2"]
    assert all(path.stat().st_size <= 5000 for path in kept)
    assert {path.stat().st_mode & 0o777 for path in kept} == {0o600}
    assert all(parse(line).moment.ask == ASK for path in kept for line in path.read_text().splitlines())


async def test_lines_are_written_by_themselves(tmp_path: Path) -> None:
    signals, the_plan = moment(seen()), plan()
    file = TraceFile(TraceSettings(file=str(tmp_path / "trace.jsonl")), worker=1)
    for _ in range(128):
        file.add(the_plan, Moment(["a"], signals, ASK, decide(the_plan, signals, ASK)))
    assert len((tmp_path / "trace-1.jsonl").read_text().splitlines()) == 128


async def test_a_file_that_cannot_be_written_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    signals, the_plan = moment(seen()), plan()
    file = TraceFile(TraceSettings(file=str(tmp_path / "no" / "trace.jsonl")))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            file.add(the_plan, Moment(["a"], signals, ASK, decide(the_plan, signals, ASK)))
            file.flush()
    assert len(caplog.records) == 1
