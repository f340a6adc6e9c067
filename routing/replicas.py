"""The order of the upstreams of one kind: by load, by chance, or so that what belongs together meets again. Pure.

Neighbours: policy.py (chooses the kind).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil

from routing.ask import Ask
from routing.signals import UpstreamSignals

# Affinity yields where an upstream has this much more than its share of the load (consistent hashing with bounded
# loads, Mirrokni, Thorup, Zadimoghaddam 2016).
BOUND = 1.25

# Fibonacci hashing: 2^32 by the golden ratio, in the 30 bits with which Python calculates fastest.
_MIX = 0x9E3779B1
_MASK = (1 << 30) - 1
# Below every score of those that are not.
_TOO_BUSY = 1 << 30

Order = Callable[[list[int], Sequence[UpstreamSignals], Ask, float], list[int]]


def least_load(group: list[int], upstreams: Sequence[UpstreamSignals], _: Ask, chance: float) -> list[int]:
    """By what each has to carry. Equals in an order by chance, or several gateways would all choose the first one."""
    turn = int(chance * len(group))
    return sorted(group[turn:] + group[:turn], key=[upstream.share for upstream in upstreams].__getitem__)


def power_of_two(group: list[int], upstreams: Sequence[UpstreamSignals], _: Ask, chance: float) -> list[int]:
    """The less busy of two by chance first (Mitzenmacher): never all gateways to the one that looked idle."""
    count = len(group)
    pair = int(chance * count * (count - 1))
    one, other = divmod(pair, count - 1)
    other += other >= one
    if upstreams[group[other]].share < upstreams[group[one]].share:
        one, other = other, one
    return [group[one], group[other], *(index for place, index in enumerate(group) if place not in (one, other))]


def affinity(group: list[int], upstreams: Sequence[UpstreamSignals], ask: Ask, _: float) -> list[int]:
    """By rendezvous hashing: each affinity has its own order of all upstreams, and when one joins only what it takes
    over moves. Those that carry too much already come last."""
    number = ask.affinity
    most = ceil(BOUND * (sum([upstreams[index].outstanding for index in group]) + 1) / len(group))
    # Both are hashes already; the product mixes them so that shares are as even as with a cryptographic hash. Called
    # for each request: a function for the score, or a list for each step, costs a microsecond.
    scores = [
        (number ^ upstream.seed) * _MIX & _MASK
        if upstream.outstanding < most
        else ((number ^ upstream.seed) * _MIX & _MASK) - _TOO_BUSY
        for upstream in upstreams
    ]
    return sorted(group, key=scores.__getitem__, reverse=True)


ORDERS: dict[str, Order] = {
    "least_load": least_load,
    "power_of_two": power_of_two,
    "prefix_affinity": affinity,
    "session_affinity": affinity,
}
