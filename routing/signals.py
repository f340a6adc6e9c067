"""Everything a policy may look at, frozen at one moment.

Neighbours: upstream.py (makes them), policy.py (decides by this alone, so that a decision can be repeated).
"""

from __future__ import annotations

from enum import StrEnum
from math import inf
from typing import NamedTuple

from routing.pace import Pace

# The kinds of upstreams, as their backends are named.
GGUF, VLLM = "gguf", "vllm"


class Obstacle(StrEnum):
    """Why an upstream takes no request now; NONE where it takes one."""

    NONE = ""
    FULL = "full"
    RESTING = "resting"
    OPEN = "open"
    STARTING = "starting"
    ASLEEP = "asleep"  # stopped for want of requests; one that would use it starts it
    NO_ROOM = "no_room"  # not started: its memory is taken by other engines
    DOWN = "down"
    TRIED = "tried"


class Stage(NamedTuple):
    """Where `graduate` stands, or `fastest` with engines on the same cores: the preferred kind, and since when. For
    `graduate`, when the load was last above the threshold for going back, and the load that the last request met
    (`crowd`). For `fastest`, the most requests at once in this second, which began at `second`, and in the one before.
    Seconds of `time.perf_counter()`."""

    kind: str
    since: float = -inf
    busy_at: float = -inf
    second: float = -inf
    crowd: int = 0
    crowd_before: int = 0


class UpstreamSignals(NamedTuple):
    """One upstream. `in_flight` are this gateway's own requests, counted from dispatch; `outstanding` is what its
    engine has to carry as far as is known: never less, and more where others use it too. `slots` are what it computes
    at once, infinite where that is unknown; `share` is how full it would be with one more request, 1.0 for as many as
    it computes at once; `seed` is its label as a number; it `shares_cores` with others of its
    model that do; `first_lines_seconds` is what a stream would take there for its first lines at the last answer's
    moment."""

    kind: str
    obstacle: Obstacle
    in_flight: int
    outstanding: int
    slots: float
    share: float
    pace: Pace
    lacks: frozenset[str]
    seed: int
    shares_cores: bool = False
    first_lines_seconds: float = 0.0


class Signals(NamedTuple):
    """One model's upstreams at `now` (`time.perf_counter()`), what they have to carry together, the requests that wait
    for them, where `graduate` stands, the local `hour` and a number from [0, 1) for choices by chance."""

    now: float
    upstreams: tuple[UpstreamSignals, ...]
    outstanding: int
    waiting: int
    stage: Stage
    hour: int
    chance: float
