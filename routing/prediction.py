"""What an upstream will probably take, by what it took lately. Pure.

Neighbours: pace.py (the averages), fastest.py (decides by it), rules.py (conditions on queues).
"""

from __future__ import annotations

from math import inf

from routing.pace import Crowd, Pace
from routing.signals import VLLM, Obstacle, Signals

_ALIVE = (Obstacle.NONE, Obstacle.FULL, Obstacle.RESTING)


# Without an answer for so long an upstream is thought to be twice as fast: one that was slow once is tried again. At
# first the doubt is small: one that nobody asks for a few seconds has not changed.
DOUBT_SECONDS = 60.0
# One on the same cores is tried with the whole load of the model. What it is held against computes on the same cores,
# and is measured all the time: which of the two is faster seldom changes. Trying takes a few rounds of answers, so that
# the doubt grows more slowly where they are long.
_DOUBT_TOGETHER_SECONDS = 15 * DOUBT_SECONDS
_DOUBT_ANSWERS = 100.0
# What so many rounds of answers said there grows old twice as fast as what very many did: it may have been a moment in
# which the machine had other work.
_FEW = 4.0

# An engine that batches is thought to be good at more than so many, before it was ever asked: faster by this power of
# their number, with four times as many by a sixth.
_BATCH = 8
_GAIN = 1 / 8

# A few lines of text. By the first token alone an engine would be preferred that is there a moment earlier, and then
# writes at a third of the other's speed.
FIRST_LINES_TOKENS = 32


def first_lines_seconds(pace: Pace, crowd: int) -> float:
    """How long a stream that is one of so many takes for its first lines; 0.0 where nothing is known."""
    return _first_lines(pace.in_crowd(crowd))


def _first_lines(crowd: Crowd) -> float:
    return crowd.first_token_seconds + (FIRST_LINES_TOKENS - 1) * crowd.inter_token_seconds


def _doubted_together(pace: Pace, crowd: int, now: float) -> float:
    """The same, as far as it is still believed of an engine that shares its cores."""
    measured = pace.in_crowd(crowd)
    age = (now - measured.measured_at) / max(_DOUBT_TOGETHER_SECONDS, _DOUBT_ANSWERS * (pace.service_seconds or 0.0))
    if measured.answers:
        age *= 1 + _FEW * measured.size / measured.answers
    return _first_lines(measured) / (1 + age * age)


def _untried(signals: Signals, together: int) -> float:
    """What is thought of an engine that batches and was never asked, beside others on its cores: that it is as fast as
    the fastest of them with few, and a little faster with many. Trying it moves the whole load: not while there is
    little to batch, but after some minutes nevertheless. 0.0 where those were never asked either."""
    paces = [upstream.pace for upstream in signals.upstreams if upstream.shares_cores and upstream.pace.crowds]
    if not paces:
        return 0.0
    age = (signals.now - signals.stage.since) / _DOUBT_TOGETHER_SECONDS
    gain: float = max(together / _BATCH, 1.0) ** _GAIN
    return min(first_lines_seconds(pace, together) for pace in paces) / gain / (1 + age * age)


def expected_seconds(signals: Signals, together: int = 0) -> list[float]:
    """For each upstream how long a stream that begins now would take for its first lines: as lately in such a crowd,
    and behind what waits in its engine. 0.0 where nothing is known: that is how to find out. Each engine that shares
    cores with another one is taken to get all the requests there: so many `together`."""
    now = signals.now
    found = []
    for kind, _, _, outstanding, slots, _, pace, _, _, shares, alone in signals.upstreams:
        if shares and together:
            if pace.crowds or kind != VLLM:
                seconds = _doubted_together(pace, together, now)
            else:
                seconds = _untried(signals, together)
        else:
            age = (now - pace.measured_at) / DOUBT_SECONDS
            seconds = alone / (1 + age * age)
        if outstanding >= slots:
            seconds += (outstanding + 1 - slots) / slots * (pace.service_seconds or 0.0)
        found.append(seconds)
    return found


def crowd_on_cores(signals: Signals) -> int:
    """How many requests an engine will probably have that gets all of those on the machine's cores: with one more, or
    as many as there were lately, for answers that end together leave a moment with none. 0 where no two share them."""
    there = [upstream.in_flight for upstream in signals.upstreams if upstream.shares_cores]
    if len(there) < 2:
        return 0
    crowd, stage = sum(there) + 1, signals.stage
    age = signals.now - stage.second
    return max(crowd, stage.crowd if age < 2 else 0, stage.crowd_before if age < 1 else 0)


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
