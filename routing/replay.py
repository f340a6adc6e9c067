"""What a configuration would have decided where another one did. Pure.

Neighbours: trace.py (the decisions), policy.py (decides again), the gateway's cli/replay.py (shows it).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from routing.policy import Decision, Plan, decide
from routing.signals import Signals, Stage
from routing.trace import Traced

# (kind, reason) before and after; the kind is "" where nobody was chosen.
Change = tuple[tuple[str, str], tuple[str, str]]


@dataclass(slots=True)
class Replayed:
    """What became of the decisions about one model. `changes` counts those that chose another upstream or said another
    reason."""

    decisions: int = 0
    changes: Counter[Change] = field(default_factory=Counter)

    @property
    def changed(self) -> int:
        """How many decisions are not what they were."""
        return self.changes.total()


def replay(traced: Iterable[Traced], plan_of: Callable[[str], Plan | None]) -> dict[str, Replayed]:
    """By model, what the plans decide about the same moments: about models without a plan nothing.

    Where `graduate` stands is taken from the trace as long as the same policy decides; otherwise it goes on from
    decision to decision by the new thresholds.
    """
    found: dict[str, Replayed] = {}
    stages: dict[str, Stage] = {}
    for one in traced:
        before, ask = one.moment.decision, one.moment.ask
        model = ask.model
        plan = plan_of(model)
        result = found.setdefault(model, Replayed())
        if plan is None:
            continue
        signals = one.moment.signals
        if (plan.policy, plan.graduate) != (one.policy, one.graduate):
            signals = signals._replace(stage=stages.get(model, signals.stage))
        decision = decide(plan, signals, ask)
        stages[model] = decision.stage
        result.decisions += 1
        change = _outcome(signals, before), _outcome(signals, decision)
        if change[0] != change[1] or before.upstreams[:1] != decision.upstreams[:1]:
            result.changes[change] += 1
    return found


def _outcome(signals: Signals, decision: Decision) -> tuple[str, str]:
    kind = signals.upstreams[decision.upstreams[0]].kind if decision.upstreams else ""
    return kind, decision.reason
