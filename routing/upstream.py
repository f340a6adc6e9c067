"""A backend as routing sees it, with the load that this gateway itself has put on it, and the pool behind one model."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, inf
from time import perf_counter

from backends.base import Backend, BackendState
from backends.load import EngineLoad
from config.routing import BreakerSettings
from routing.adaptive import AdaptiveLimit
from routing.ask import number_of
from routing.health import Breaker
from routing.pace import Pace
from routing.prediction import first_lines_seconds
from routing.signals import Obstacle, UpstreamSignals

# An upstream without a known limit counts as one of so many slots where loads are compared.
ASSUMED_SLOTS = 64

_numbers = itertools.count()


class Upstream:
    """One place to send requests of a model to.

    `limit` is how many may be in flight at once, `lacks` the features that its engine does not have, `label` a name
    that stays the same over restarts and in every process, by which prompts and sessions find it again. It
    `shares_cores` where it computes on this machine's processor, as others of its model may.
    """

    __slots__ = (
        "_in_flight_at_load",
        "_load",
        "_pace",
        "_restarts",
        "_seen",
        "_seen_state",
        "_whole_limit",
        "adaptive",
        "backend",
        "breaker",
        "in_flight",
        "kind",
        "label",
        "lacks",
        "limit",
        "seed",
        "shares_cores",
    )

    def __init__(
        self,
        backend: Backend,
        *,
        label: str = "",
        limit: float | AdaptiveLimit = inf,
        lacks: frozenset[str] = frozenset(),
        shares_cores: bool = False,
    ) -> None:
        self.backend = backend
        self.kind = backend.name
        self.label = label or f"{backend.name}-{next(_numbers)}"
        self.seed = number_of(self.label.encode())
        self.adaptive = limit if isinstance(limit, AdaptiveLimit) else None
        self.limit = self._whole_limit = limit.value if isinstance(limit, AdaptiveLimit) else limit
        self.breaker = Breaker()
        self.lacks = lacks
        self.shares_cores = shares_cores
        # Requests from dispatch until their response is closed. Only Router changes it.
        self.in_flight = 0
        self._pace = Pace()
        self._load: EngineLoad | None = None
        self._in_flight_at_load = 0
        # The last look, as long as it holds: of sixteen upstreams, one or two change between two decisions.
        self._seen: UpstreamSignals | None = None
        # What would show at the next look that it was away meanwhile.
        self._restarts = self.restarts
        self._seen_state: BackendState | None = None

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
        self._in_flight_at_load = self.in_flight
        self._load = load
        self._seen = None

    def adopt(self, breaker: BreakerSettings, first_token_target_seconds: float, workers: int) -> None:
        """What the plan of its model says. Of a fixed limit each of the `workers` has its share."""
        self.breaker.settings = breaker
        if self.adaptive is not None:
            self.adaptive.target_seconds = first_token_target_seconds
        elif self._whole_limit != inf:
            self.limit = ceil(self._whole_limit / workers)
        self._seen = None

    @property
    def takes_more(self) -> bool:
        """Whether one more request may be sent now: the least that has to be known where there is no other upstream."""
        breaker = self.breaker
        well = breaker.clear or breaker.only_warms(perf_counter())
        return well and self.in_flight < self.limit and self.backend.state is BackendState.READY

    @property
    def room(self) -> float:
        """How many more requests it may be sent now, infinite where that is unknown."""
        return max(self.limit - self.in_flight, 0.0) if self.is_well else 0.0

    @property
    def is_well(self) -> bool:
        """Whether nothing speaks against it but, perhaps, that it is full."""
        return self.breaker.clear and self.backend.state is BackendState.READY

    @property
    def restarts(self) -> int:
        """How often its engine had to be started again, as far as that is known here."""
        return getattr(self.backend, "restarts", 0)

    def failed(self, now: float) -> None:
        """A request has failed there, by its fault."""
        self._restarts = self.restarts
        self.breaker.failed(now)

    def answered(
        self, now: float, service_seconds: float, first_token_seconds: float | None, tokens: int, in_flight: int
    ) -> None:
        """A whole answer has come, which was one of `in_flight` when it was sent (0: that says nothing); a
        stream of `tokens` tells when its first token came."""
        if self.breaker.doubted:
            self.breaker.succeeded(now)
        # The first of many that came at once was alone when it was sent.
        crowd = max(in_flight, self.in_flight) if in_flight else 0
        # On shared cores all of a model's load moves where one goes: not for what a moment makes of it.
        self._pace = self._pace.with_answer(
            now, service_seconds, first_token_seconds, tokens, crowd, steady=self.shares_cores
        )
        self._seen = None
        if self.adaptive is not None and first_token_seconds is not None:
            self.adaptive.answered(now, first_token_seconds, self.in_flight)
            self.limit = self.adaptive.value

    def outrun(self, now: float, seconds: float) -> None:
        """A request has waited here for so long, and another upstream answered it. Where more was to be expected this
        says nothing."""
        crowd = self.in_flight + 1
        if seconds > self._pace.in_crowd(crowd).first_token_seconds:
            self.pace = self._pace.with_answer(now, seconds, None, 0, crowd, steady=self.shares_cores)

    def look(self, now: float, beside: Sequence[Upstream] = ()) -> UpstreamSignals:
        """As it is at `now`. One that has come back is full with less at first, if another of those `beside` it can
        serve meanwhile."""
        state, breaker = self.backend.state, self.breaker
        seen = self._seen
        if seen is not None and seen.in_flight == self.in_flight and state is self._seen_state and breaker.clear:
            return seen
        if state is BackendState.READY and self._was_away():
            breaker.came_back(now)
        if not breaker.clear:
            breaker.refresh(now)
        in_flight, limit, load = self.in_flight, self.limit, self._load
        outstanding, slots = in_flight, limit
        if load is not None:
            # The engine's count, corrected by what it was sent, or is done with, since that was taken.
            outstanding = max(in_flight, load.running + load.waiting + in_flight - self._in_flight_at_load)
            if load.waiting and limit == inf:
                slots = load.running or 1
        share = (outstanding + 1) / min(slots, ASSUMED_SLOTS)
        self._seen_state = state
        self._seen = UpstreamSignals(
            self.kind,
            self._obstacle(now, state, beside),
            in_flight,
            outstanding,
            slots,
            share,
            self._pace,
            self.lacks,
            self.seed,
            self.shares_cores,
            first_lines_seconds(self._pace, in_flight + 1),
        )
        return self._seen

    def _was_away(self) -> bool:
        """Whether it was not READY at the last look, or has been started again since and nobody looked in between."""
        before, self._restarts = self._restarts, getattr(self.backend, "restarts", 0)
        return self._seen_state not in (None, BackendState.READY) or before != self._restarts

    def _obstacle(self, now: float, state: BackendState, beside: Sequence[Upstream]) -> Obstacle:
        if state is not BackendState.READY:
            if state is not BackendState.STARTING and getattr(self.backend, "asleep", False):
                return Obstacle.ASLEEP
            if state is BackendState.FAILED and getattr(self.backend, "refused", False):
                return Obstacle.NO_ROOM
            # An engine of ours that has failed is started again, unless it gave up.
            comes = state is BackendState.STARTING or (
                state is BackendState.FAILED and not getattr(self.backend, "gave_up", True)
            )
            return Obstacle.STARTING if comes else Obstacle.DOWN
        limit, breaker = self.limit, self.breaker
        if not breaker.clear:
            if not breaker.admits(now):
                return Obstacle.OPEN
            if breaker.rests(now):
                return Obstacle.RESTING
            if any(other.is_well for other in beside if other is not self):
                limit = max(1.0, min(limit, ASSUMED_SLOTS) * breaker.warmth(now))
        return Obstacle.NONE if self.in_flight < limit else Obstacle.FULL


def free_in_seconds(upstreams: Iterable[Upstream], now: float) -> float | None:
    """When the first of those that are left alone for now is asked again; None where none is, or nobody knows."""
    return min((seconds for each in upstreams if (seconds := each.breaker.free_in_seconds(now)) > 0), default=None)


@dataclass(slots=True, eq=False)
class UpstreamPool:
    """Everything that serves one model. `model` is its configured name, whatever alias a client used. `upstreams` is
    replaced as a whole when members join or leave."""

    model: str
    upstreams: tuple[Upstream, ...]

    def __post_init__(self) -> None:
        if not self.upstreams:
            raise ValueError(f"the pool of {self.model!r} has no upstream")
