"""What an upstream will probably take, by what it took lately. Pure.

Neighbours: pace.py (the averages), policy.py (`fastest`), rules.py (conditions on queues).
"""

from __future__ import annotations

from math import exp, inf, log

from routing.signals import Obstacle, Signals

# Without new measurements an average is halved in this time: an upstream that was slow once is tried again.
HALF_LIFE_SECONDS = 30.0
_HALVING = log(2) / HALF_LIFE_SECONDS

_ALIVE = (Obstacle.NONE, Obstacle.FULL, Obstacle.RESTING)


def first_token_seconds(signals: Signals) -> list[float]:
    """For each upstream how long a stream that begins now would wait for its first token: as lately, longer in a larger
    crowd than that was measured in and shorter in a smaller one (as Finagle's peak EWMA), and behind what waits in its
    engine. 0.0 where nothing is known: that is how to find out."""
    now = signals.now
    found = []
    for upstream in signals.upstreams:
        first, _, service, measured_at, crowd = upstream.pace
        seconds = first if first is not None else service or 0.0
        if now - measured_at > 1:
            seconds *= exp(_HALVING * (measured_at - now))
        # Without this the one that got slow under a load was thought to be slow without it.
        seconds *= (upstream.in_flight + 1) / crowd
        if upstream.outstanding >= upstream.slots:
            seconds += (upstream.outstanding + 1 - upstream.slots) / upstream.slots * (service or 0.0)
        found.append(seconds)
    return found


def queue_seconds(kind: str, signals: Signals) -> float:
    """How long one more request would wait for the least busy upstream of `kind`. 0.0 while that is unknown, infinite
    where none of them is up."""
    shortest = inf
    for upstream in signals.upstreams:
        if upstream.kind == kind and upstream.obstacle in _ALIVE:
            ahead = upstream.outstanding + signals.waiting + 1 - upstream.slots
            wait = ahead / upstream.slots * (upstream.pace.service_seconds or 0.0) if ahead > 0 else 0.0
            shortest = min(shortest, wait)
    return shortest
