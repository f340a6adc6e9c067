"""What routing would do with a request now, and what each upstream is doing: for people. Changes nothing.

Neighbours: lane.py (what is told about), policy.py (decides), the gateway's api/admin.py (shows it).
"""

from __future__ import annotations

from math import inf
from time import perf_counter
from typing import Any

from routing.ask import Ask
from routing.lane import Lane
from routing.policy import decide
from routing.prediction import crowd_on_cores, expected_seconds, queue_seconds
from routing.rules import matches
from routing.signals import Obstacle, Signals, UpstreamSignals
from routing.upstream import Upstream

_WHY_NOT = {
    Obstacle.FULL: "it has as many requests as it may",
    Obstacle.RESTING: "it refused a request and asked to be left alone for a while",
    Obstacle.OPEN: "it failed too often in a row; its breaker is open",
    Obstacle.STARTING: "it is starting",
    Obstacle.ASLEEP: "it was stopped for want of requests; the next one that would use it starts it",
    Obstacle.NO_ROOM: "there is no room for its engine in memory; GET /readyz tells why",
    Obstacle.DOWN: "it is not up",
}


def status(lane: Lane) -> dict[str, Any]:
    """One model as it is now, as JSON has it. Times in seconds, None where nothing is known."""
    signals = lane.signals()
    now = perf_counter()
    members = zip(lane.pool.upstreams, signals.upstreams, strict=True)
    kinds = {seen.kind for seen in signals.upstreams}
    return {
        "model": lane.pool.model,
        "policy": lane.plan.policy,
        "replicas": lane.plan.replicas,
        "preferred": lane.stage.kind if lane.plan.policy == "graduate" and len(kinds) > 1 else None,
        "waiting": len(lane.admission),
        "retries": lane.budget.spent,
        "upstreams": [_upstream(upstream, seen, now) for upstream, seen in members],
    }


def _upstream(upstream: Upstream, seen: UpstreamSignals, now: float) -> dict[str, Any]:
    load, pace = upstream.load, seen.pace
    return {
        "name": upstream.label,
        "backend": upstream.kind,
        "state": str(upstream.backend.state),
        "takes_more": seen.obstacle is Obstacle.NONE,
        "obstacle": str(seen.obstacle) or None,
        "breaker": str(upstream.breaker.state(now)),
        "failures_in_a_row": upstream.breaker.failures,
        "in_flight": seen.in_flight,
        "limit": None if upstream.limit == inf else upstream.limit,
        "engine": None
        if load is None
        else {"running": load.running, "waiting": load.waiting, "kv_cache_usage": load.kv_cache_usage},
        "first_token_seconds": pace.first_token_seconds,
        "inter_token_seconds": pace.inter_token_seconds,
        "answer_seconds": pace.service_seconds,
        "warning": getattr(upstream.backend, "warning", "") or None,
    }


def explain(lane: Lane, ask: Ask) -> dict[str, Any]:
    """What would happen to a request like `ask`: the decision, each rule, and why not the others."""
    signals = lane.signals()
    decision = decide(lane.plan, signals, ask)
    reason = decision.reason
    labels = [upstream.label for upstream in lane.pool.upstreams]
    first_lines = expected_seconds(signals, crowd_on_cores(signals))
    return {
        "model": lane.pool.model,
        "policy": lane.plan.policy,
        "upstream": labels[decision.upstreams[0]] if decision.upstreams else None,
        "backend": signals.upstreams[decision.upstreams[0]].kind if decision.upstreams else None,
        "reason": reason,
        "rules": [
            {
                "use": rule.use,
                "matches": matches(rule.when, signals, ask),
                "when": rule.when.model_dump(exclude_unset=True),
            }
            for rule in lane.plan.rules
        ],
        "upstreams": [
            {
                "name": labels[index],
                "backend": seen.kind,
                "place": decision.upstreams.index(index) + 1 if index in decision.upstreams else None,
                "why_not": _why_not(index, seen, decision.upstreams, reason, ask),
                "predicted_first_lines_seconds": round(first_lines[index], 4),
                "predicted_queue_seconds": _queue(seen.kind, signals),
            }
            for index, seen in enumerate(signals.upstreams)
        ],
    }


def _why_not(index: int, seen: UpstreamSignals, chosen: tuple[int, ...], reason: str, ask: Ask) -> str | None:
    if chosen[:1] == (index,):
        return None
    lacking = ask.features & seen.lacks
    if lacking:
        return f"it lacks {', '.join(sorted(lacking))}"
    if seen.obstacle is not Obstacle.NONE:
        return _WHY_NOT[seen.obstacle]
    if index in chosen:
        return f"another one comes first ({reason}); it is asked if that one fails"
    return f"it is not asked: {reason}"


def _queue(kind: str, signals: Signals) -> float | None:
    seconds = queue_seconds(kind, signals)
    return None if seconds == inf else round(seconds, 4)
