"""A backend as routing sees it, with the load that this gateway itself has put on it, and the pool behind one model."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from math import inf

from backends.base import Backend, BackendState
from backends.load import EngineLoad
from routing.ask import number_of
from routing.pace import Pace
from routing.signals import Obstacle, UpstreamSignals

# An upstream without a known limit counts as one of so many slots where loads are compared.
ASSUMED_SLOTS = 64

_numbers = itertools.count()


class Upstream:
    """One place to send requests of a model to.

    `limit` is how many may be in flight at once, `lacks` the features that its engine does not have, `label` a name
    that stays the same over restarts and in every process, by which prompts and sessions find it again.
    """

    __slots__ = (
        "_in_flight",
        "_in_flight_at_load",
        "_load",
        "_pace",
        "_seen",
        "_seen_state",
        "backend",
        "kind",
        "label",
        "lacks",
        "limit",
        "seed",
    )

    def __init__(
        self, backend: Backend, *, label: str = "", limit: float = inf, lacks: frozenset[str] = frozenset()
    ) -> None:
        self.backend = backend
        self.kind = backend.name
        self.label = label or f"{backend.name}-{next(_numbers)}"
        self.seed = number_of(self.label.encode())
        self.limit = limit
        self.lacks = lacks
        self._in_flight = 0
        self._pace = Pace()
        self._load: EngineLoad | None = None
        self._in_flight_at_load = 0
        # The last look, as long as it holds: of sixteen upstreams, one or two change between two decisions.
        self._seen: UpstreamSignals | None = None
        self._seen_state = BackendState.STOPPED

    @property
    def in_flight(self) -> int:
        """Requests from dispatch until their response is closed. Only Router changes it."""
        return self._in_flight

    @in_flight.setter
    def in_flight(self, number: int) -> None:
        self._in_flight = number
        self._seen = None

    @property
    def pace(self) -> Pace:
        """What its answers took lately."""
        return self._pace

    @pace.setter
    def pace(self, pace: Pace) -> None:
        self._pace = pace
        self._seen = None

    @property
    def load(self) -> EngineLoad | None:
        """What the engine last said of itself, None while nothing fresh is known."""
        return self._load

    @load.setter
    def load(self, load: EngineLoad | None) -> None:
        # What is dispatched from now on is not in these numbers yet.
        self._in_flight_at_load = self._in_flight
        self._load = load
        self._seen = None

    def look(self) -> UpstreamSignals:
        """As it is now."""
        state = self.backend.state
        if self._seen is not None and state is self._seen_state:
            return self._seen
        in_flight, limit, load = self._in_flight, self.limit, self._load
        outstanding, slots = in_flight, limit
        if load is not None:
            # The engine's count, corrected by what it was sent, or is done with, since that was taken.
            outstanding = max(in_flight, load.running + load.waiting + in_flight - self._in_flight_at_load)
            if load.waiting and limit == inf:
                slots = load.running or 1
        if state is BackendState.READY:
            obstacle = Obstacle.NONE if in_flight < limit else Obstacle.FULL
        else:
            obstacle = Obstacle.STARTING if state is BackendState.STARTING else Obstacle.DOWN
        share = (outstanding + 1) / min(slots, ASSUMED_SLOTS)
        self._seen_state = state
        self._seen = UpstreamSignals(
            self.kind, obstacle, in_flight, outstanding, slots, share, self._pace, self.lacks, self.seed
        )
        return self._seen


@dataclass(slots=True, eq=False)
class UpstreamPool:
    """Everything that serves one model. `model` is its configured name, whatever alias a client used. `upstreams` is
    replaced as a whole when members join or leave."""

    model: str
    upstreams: tuple[Upstream, ...]

    def __post_init__(self) -> None:
        if not self.upstreams:
            raise ValueError(f"the pool of {self.model!r} has no upstream")
