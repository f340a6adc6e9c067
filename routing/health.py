"""Whether an upstream should be left alone: the circuit breaker, by what became of the requests it was sent.

Closed: it gets requests. Open: too many failed in a row, it gets none. Half open: one request at a time is a trial, the
first success closes it. Besides: an upstream that said how long it wants to be left alone, and the slow start of one
that has come back. Pure; times are `time.perf_counter()`. Neighbours: upstream.py (keeps one), lane.py (tells it).
"""

from __future__ import annotations

from enum import StrEnum
from math import inf

from config.routing import BreakerSettings

_DEFAULTS = BreakerSettings()


class BreakerState(StrEnum):
    """As on the dashboards of every proxy."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Breaker:
    """The passive health of one upstream. `failures` are those in a row, `settings` may be replaced; `clear` says that
    nothing of this applies: it is what the hot path asks."""

    __slots__ = ("_back_at", "_open_until", "_openings", "_rest_until", "_trial", "clear", "failures", "settings")

    def __init__(self, settings: BreakerSettings = _DEFAULTS) -> None:
        self.settings = settings
        self.clear = True
        self.failures = 0
        self._openings = 0
        self._open_until = -inf
        self._trial = False
        self._rest_until = -inf
        self._back_at = -inf

    @property
    def doubted(self) -> bool:
        """Whether a success would change anything."""
        return self.failures > 0 or self._openings > 0

    def state(self, now: float) -> BreakerState:
        """Where it stands."""
        if not self._openings:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self._open_until else BreakerState.HALF_OPEN

    def admits(self, now: float) -> bool:
        """Whether a request may be sent."""
        state = self.state(now)
        return state is BreakerState.CLOSED or (state is BreakerState.HALF_OPEN and not self._trial)

    def rests(self, now: float) -> bool:
        """Whether it has asked to be left alone."""
        return now < self._rest_until

    def warmth(self, now: float) -> float:
        """How much of its share it gets, from 0.0 to 1.0."""
        seconds = self.settings.slow_start_seconds
        return 1.0 if now - self._back_at >= seconds else (now - self._back_at) / seconds

    def free_in_seconds(self, now: float) -> float:
        """How long nothing will be sent to it, as far as that is known."""
        return max(self._open_until - now if self._openings else 0.0, self._rest_until - now, 0.0)

    def refresh(self, now: float) -> None:
        """Sets `clear` once everything is over."""
        self.clear = not self._openings and now >= self._rest_until and self.warmth(now) >= 1.0

    def only_warms(self, now: float) -> bool:
        """Whether nothing but the slow start is left, which is no matter where there is no other upstream."""
        if self._openings or now < self._rest_until:
            return False
        self.clear = self.warmth(now) >= 1.0
        return True

    def begin(self, now: float) -> None:
        """A request is sent. In half-open that is the trial."""
        if self._openings and now >= self._open_until:
            self._trial = True

    def succeeded(self, now: float) -> None:
        """An answer has begun (which ends a trial) or come to its end."""
        if self._openings:
            # An answer that began before it opened says nothing about now.
            if now < self._open_until:
                return
            self.came_back(now)
        self.failures = 0

    def failed(self, now: float) -> None:
        """A request has failed in a way that is the upstream's fault."""
        self.failures += 1
        if self._openings and now < self._open_until:
            return
        if self._openings or self.failures >= self.settings.failures:
            settings = self.settings
            self._open_until = now + min(settings.open_seconds * 2**self._openings, settings.max_open_seconds)
            # Enough doublings for every pair of settings.
            self._openings = min(self._openings + 1, 16)
            self._trial = False
            self.clear = False

    def undecided(self) -> None:
        """A request ended without saying anything about the upstream: its client left."""
        self._trial = False

    def rest(self, now: float, seconds: float) -> None:
        """It does not want requests for so long: `Retry-After`."""
        self._rest_until = max(self._rest_until, now + seconds)
        self._trial = False
        self.clear = False

    def came_back(self, now: float) -> None:
        """It serves again, after a trial or a restart; from here it gets its full share step by step."""
        self.failures = self._openings = 0
        self._trial = False
        self._back_at = now
        self.clear = False
