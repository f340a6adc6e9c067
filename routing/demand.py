"""Which engines that sleep a request would use, and so wakes. Pure, but for `wake`.

Neighbours: policy.py (decides), lane.py (asks after each decision), backends/residency.py (who puts them to
sleep).
"""

from __future__ import annotations

from routing.ask import Ask
from routing.policy import Decision, Plan, decide
from routing.signals import GGUF, Obstacle, Signals
from routing.upstream import Upstream

_COMING = (Obstacle.ASLEEP, Obstacle.STARTING)


def wanted(plan: Plan, signals: Signals, ask: Ask, decision: Decision) -> tuple[int, ...]:
    """Indices of the upstreams to be woken for a request about which `decision` was made: the one that would come first
    if all that sleep and start were up, if that one sleeps. A request that has to wait wakes a GGUF engine as well,
    which answers while vLLM starts."""
    asleep = [index for index, upstream in enumerate(signals.upstreams) if upstream.obstacle is Obstacle.ASLEEP]
    # `fastest` and `least_load`, whose reasons are their names, prefer nobody: nobody is started while another can.
    if not asleep or (decision.upstreams and decision.reason == plan.policy):
        return ()
    awake = tuple(
        upstream._replace(obstacle=Obstacle.NONE) if upstream.obstacle in _COMING else upstream
        for upstream in signals.upstreams
    )
    order = decide(plan, signals._replace(upstreams=awake), ask).upstreams
    bridges = () if decision.upstreams else order[1:]
    return tuple(
        index for index in asleep if index in order[:1] or (index in bridges and signals.upstreams[index].kind == GGUF)
    )


def wake(upstream: Upstream) -> None:
    """Has its engine started; returns at once. Everybody who waits asks for it again and again: that costs nothing."""
    upstream.backend.wake()  # type: ignore[attr-defined]  # what is ASLEEP can be woken
