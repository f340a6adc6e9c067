"""The policy `fastest`: who has the first lines of an answer soonest, and one engine at a time on shared cores. Pure.

Engines with hardware of their own are chosen anew for each request, so that the load spreads over them. Two that are
computed by the same cores only hold each other up, so the whole load of the model is given to one of them, and to the
other one when that would be clearly faster. Neighbours: prediction.py (how fast), policy.py (asks this).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from routing.pace import Crowd, Pace
from routing.prediction import crowd_on_cores, expected_seconds
from routing.signals import Signals, Stage

# On the same cores the other engine has to be so much faster, and the last move so long ago, before the load moves:
# that costs, and what is measured wavers. Meanwhile the engine shows what it does when it has warmed up to its load.
CLEARLY = 0.9
# Until an engine has answered a crowd so often over, the other one has to be this much faster: its first answers came
# while the crowd grew, or while the engine woke up to it. The same in a crowd that is larger than any it was measured
# in, and was not there in the second before.
FAR = 1 / 3
ROUNDS = 3
HARDLY_MORE = 1.25
DWELL_SECONDS = 1.0


def fastest(signals: Signals, free: Sequence[int]) -> tuple[tuple[int, ...], Stage]:
    """The order of the upstreams that are `free`, and where the model stands from now on."""
    upstreams, together = signals.upstreams, crowd_on_cores(signals)
    seconds = expected_seconds(signals, together)
    order = sorted(free, key=seconds.__getitem__)
    if not together:
        return tuple(order), signals.stage
    sharing = [index for index in order if upstreams[index].shares_cores]
    stage = _moved(_noted(signals), signals, together, seconds, sharing)
    kinds = [upstreams[index].kind for index in sharing]
    chosen = sharing[kinds.index(stage.kind)] if stage.kind in kinds else next(iter(sharing), None)
    others = [index for index in sharing if index != chosen]
    return (*(index for index in order if index not in others), *others), stage


def _noted(signals: Signals) -> Stage:
    """Where the model stands, with one more request in this second."""
    stage, now = signals.stage, signals.now
    crowd = sum([upstream.in_flight for upstream in signals.upstreams if upstream.shares_cores]) + 1
    age = now - stage.second
    if age < 1:
        return stage._replace(crowd=max(crowd, stage.crowd))
    # The first answers of all say little about an engine, so it is not left at once.
    since = now if stage.second == -inf else stage.since
    return stage._replace(since=since, second=now, crowd=crowd, crowd_before=stage.crowd if age < 2 else 0)


def _moved(stage: Stage, signals: Signals, together: int, seconds: Sequence[float], sharing: Sequence[int]) -> Stage:
    """`stage` with the kind of the engine to be preferred among those `sharing` cores that are free, fastest first."""
    current = next((index for index in sharing if signals.upstreams[index].kind == stage.kind), None)
    if current is None or signals.now - stage.since < DWELL_SECONDS:
        return stage
    pace = signals.upstreams[current].pace
    share = seconds[sharing[0]] / seconds[current] if seconds[current] else 1.0
    if share < FAR or (share < CLEARLY and _has_shown(pace, together, stage.crowd_before)):
        return stage._replace(kind=signals.upstreams[sharing[0]].kind, since=signals.now)
    return stage


def _has_shown(pace: Pace, together: int, lately: int) -> bool:
    """Whether it is known what an engine of this `pace` does with so many, or it would be too late to wait for that:
    a crowd that grows for ever is not answered so often over. `lately` there were that many."""
    crowd, measured = pace.in_crowd(together), [each for each in pace.crowds if each.answers]
    met = max([lately, *(each.size for each in measured)])
    if _is_shown(crowd) and together <= HARDLY_MORE * met + 1:
        return True
    shown = [each.size for each in measured if _is_shown(each)]
    return bool(shown) and together > 2 * max(shown) + 1


def _is_shown(crowd: Crowd) -> bool:
    return crowd.answers >= ROUNDS * crowd.round_answers
