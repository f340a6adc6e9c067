"""One decision as a line of JSON, and back: everything that was looked at, nothing that was said.

A line holds no prompt, no answer and no key, but names of keys and tiers, and a 30-bit hash where affinity needs one.
Pure. Neighbours: tracefile.py (writes the lines), replay.py (reads them).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from math import inf
from typing import Any, NamedTuple

from config.routing import GraduateSettings
from routing.ask import Ask
from routing.pace import Crowd, Pace
from routing.policy import Decision, Plan
from routing.signals import Obstacle, Signals, Stage, UpstreamSignals


class TraceError(ValueError):
    """A line that is no decision."""


class Moment(NamedTuple):
    """One decision and all that it was made from. `labels` name the upstreams, in the order of the signals."""

    labels: Sequence[str]
    signals: Signals
    ask: Ask
    decision: Decision


class Traced(NamedTuple):
    """A decision that was read: `policy` and `graduate` decided it."""

    moment: Moment
    policy: str
    graduate: GraduateSettings


def line_of(plan: Plan, one: Moment, seconds: float) -> str:
    """The line of one decision by `plan`, made `seconds` after 1970."""
    labels, signals, ask, decision = one
    line = {
        "time": datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds"),
        "model": ask.model,
        "chosen": labels[decision.upstreams[0]] if decision.upstreams else None,
        "reason": decision.reason,
        "order": decision.upstreams,
        "policy": plan.policy,
        "graduate": plan.graduate.model_dump(),
        "ask": {**ask._asdict(), "features": sorted(ask.features)},
        "now": signals.now,
        "outstanding": signals.outstanding,
        "waiting": signals.waiting,
        "hour": signals.hour,
        "chance": signals.chance,
        "stage": [_finite(value) if isinstance(value, float) else value for value in signals.stage],
        "upstreams": [
            _upstream_line(label, upstream) for label, upstream in zip(labels, signals.upstreams, strict=True)
        ],
    }
    return json.dumps(line, allow_nan=False) + "\n"


def parse(line: str) -> Traced:
    """The decision of a line. Raises TraceError."""
    try:
        return _parse(json.loads(line))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise TraceError(f"is no traced decision ({type(error).__name__}: {error})") from None


def _parse(line: dict[str, Any]) -> Traced:
    upstreams = tuple(_upstream(fields) for fields in line["upstreams"])
    kind, since, busy_at, second, crowd, before = line["stage"]
    stage = Stage(
        str(kind),
        _or_infinite(since, -inf),
        _or_infinite(busy_at, -inf),
        _or_infinite(second, -inf),
        int(crowd),
        int(before),
    )
    signals = Signals(
        float(line["now"]),
        upstreams,
        int(line["outstanding"]),
        int(line["waiting"]),
        stage,
        int(line["hour"]),
        float(line["chance"]),
    )
    asked = line["ask"]
    ask = Ask(**{**asked, "features": frozenset(asked["features"])})
    order = tuple(int(index) for index in line["order"])
    if any(not 0 <= index < len(upstreams) for index in order):
        raise ValueError("order names an upstream that is not there")
    decision = Decision(order, str(line["reason"]), stage)
    labels = tuple(str(fields["label"]) for fields in line["upstreams"])
    return Traced(Moment(labels, signals, ask, decision), str(line["policy"]), GraduateSettings(**line["graduate"]))


def _upstream_line(label: str, upstream: UpstreamSignals) -> dict[str, Any]:
    fields = upstream._asdict()
    changed = {"slots": _finite(upstream.slots), "lacks": sorted(upstream.lacks)}
    return {"label": label, **fields, **changed}


def _upstream(fields: dict[str, Any]) -> UpstreamSignals:
    return UpstreamSignals(
        kind=str(fields["kind"]),
        obstacle=Obstacle(fields["obstacle"]),
        in_flight=int(fields["in_flight"]),
        outstanding=int(fields["outstanding"]),
        slots=_or_infinite(fields["slots"], inf),
        share=float(fields["share"]),
        pace=_pace(*fields["pace"]),
        lacks=frozenset(fields["lacks"]),
        seed=int(fields["seed"]),
        shares_cores=bool(fields["shares_cores"]),
        first_lines_seconds=float(fields["first_lines_seconds"]),
    )


def _pace(
    first: float | None, between: float | None, service: float | None, measured_at: float, crowds: list[Any]
) -> Pace:
    return Pace(first, between, service, measured_at, tuple(Crowd(*crowd) for crowd in crowds))


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return None if value in (inf, -inf) else value


def _or_infinite(value: float | None, infinite: float) -> float:
    return infinite if value is None else float(value)
