"""Signals for tests of policies, with everything quiet and well unless a test says otherwise."""

from __future__ import annotations

from math import inf
from typing import Any

from config.routing import RoutingSettings
from routing.pace import Pace
from routing.policy import Plan, plan_for
from routing.prediction import first_lines_seconds
from routing.signals import GGUF, Obstacle, Signals, Stage, UpstreamSignals
from routing.upstream import ASSUMED_SLOTS


def seen(kind: str = GGUF, outstanding: int = 0, obstacle: Obstacle = Obstacle.NONE, **fields: Any) -> UpstreamSignals:
    """One upstream. `in_flight` is `outstanding` unless given."""
    usual: dict[str, Any] = {
        "in_flight": outstanding,
        "slots": inf,
        "share": (outstanding + 1) / min(fields.get("slots", inf), ASSUMED_SLOTS),
        "pace": Pace(),
        "lacks": frozenset(),
        "seed": 0,
        "shares_cores": False,
    }
    known = usual | fields
    line = first_lines_seconds(known["pace"], known["in_flight"] + 1)
    return UpstreamSignals(kind=kind, obstacle=obstacle, outstanding=outstanding, first_lines_seconds=line, **known)


def moment(*upstreams: UpstreamSignals, **fields: Any) -> Signals:
    """One look at a model."""
    total = sum(upstream.outstanding for upstream in upstreams)
    usual: dict[str, Any] = {
        "now": 1000.0,
        "outstanding": total,
        "waiting": 0,
        "stage": Stage(GGUF),
        "hour": 12,
        "chance": 0.0,
    }
    return Signals(upstreams=upstreams, **(usual | fields))


def plan(**routing: Any) -> Plan:
    """The plan of the model "m" under `routing:` with these keys."""
    return plan_for("m", RoutingSettings.model_validate(routing))
