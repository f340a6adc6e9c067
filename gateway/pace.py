"""How a stream comes: its tokens, when the first one was there, and the pauses after it.

Neighbours: relay.py (tells of every read), record.py (the first token), metrics.py (the pauses' histogram).
"""

from __future__ import annotations

from time import perf_counter

from gateway.events import is_opening
from gateway.histogram import Histogram
from gateway.record import Record

# An event that is no token and ends every whole stream.
_END = b"[DONE]\n\n"


class Pace:
    """One stream's. `tokens` are counted as they are passed on: one for each event that may hold one."""

    __slots__ = ("_before", "_pauses", "_record", "tokens")

    def __init__(self, record: Record, pauses: Histogram) -> None:
        """`record` learns of the first token, `pauses` of every pause, in seconds for each event."""
        self._record = record
        self._pauses = pauses
        self._before = 0.0
        self.tokens = 0

    def note(self, ready: bytes, arrived: float) -> None:
        """`ready` are whole events that were read at `arrived` (perf_counter) and passed on."""
        pieces = ready.count(b"data:")
        if ready.endswith(_END):
            pieces -= 1
        if self._before:
            if pieces > 0:
                # A read for each token, under load one for several: each had its part of the pause.
                self._pauses.spread(arrived - self._before, pieces)
                self._before = arrived
                self.tokens += pieces
        elif not is_opening(ready):
            self._record.first_token = self._before = perf_counter()
            self.tokens = pieces

    def go_on(self) -> None:
        """The client has read what it had not: that pause was not the engine's."""
        if self._before:
            self._before = perf_counter()
