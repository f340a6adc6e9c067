"""How a stream comes: its events, when its first token was there, and the pauses after it.

Neighbours: relay.py (tells of every read), record.py (the first token), metrics.py (the pauses' histogram).
"""

from __future__ import annotations

from time import perf_counter

from gateway.events import is_opening
from gateway.histogram import Histogram
from gateway.record import Record


class Pace:
    """One stream's. `events` are counted as they are passed on; about one token is in each."""

    __slots__ = ("_before", "_pauses", "_record", "events")

    def __init__(self, record: Record, pauses: Histogram) -> None:
        """`record` learns of the first token, `pauses` of every pause, in seconds for each event."""
        self._record = record
        self._pauses = pauses
        self._before = 0.0
        self.events = 0

    def note(self, ready: bytes, arrived: float, done: bool) -> None:
        """`ready` are whole events that were read at `arrived` (perf_counter) and passed on; `done`: the end marker was
        the last of them, which is no token."""
        pieces = ready.count(b"data:")
        self.events += pieces
        if self._before:
            pieces -= done
            if pieces > 0:
                # A read for each token, under load one for several: each had its part of the pause.
                self._pauses.spread(arrived - self._before, pieces)
                self._before = arrived
        elif not is_opening(ready):
            self._record.first_token = self._before = perf_counter()

    def go_on(self) -> None:
        """The client has read what it had not: that pause was not the engine's."""
        if self._before:
            self._before = perf_counter()
