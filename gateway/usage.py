"""Whether requests use an engine, told by what is counted anyway: nothing is paid per request for it.

Neighbours: gateway.py (has one for each engine launched here), backends/residency.py and workers/link.py (ask).
"""

from __future__ import annotations

from collections.abc import Callable

from gateway.metrics import Series


class Usage:
    """Of one engine by this process. `series` counts the requests that have ended; `running` and `waiting` tell how
    many run on it, and how many of its model wait."""

    def __init__(self, series: Series, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        self._series = series
        self._running = running
        self._waiting = waiting
        self._ended = 0

    @property
    def busy(self) -> bool:
        """Whether a request runs on it, or waits, which may be for it."""
        return self._running() > 0 or self._waiting() > 0

    def used(self) -> bool:
        """Whether there was or is a request since this was last asked."""
        ended = sum(self._series.requests.values())
        used = ended != self._ended or self.busy
        self._ended = ended
        return used

    async def let_go(self) -> bool:
        """Whether it can be stopped now. Where all requests are sent by this process, that holds until something else
        runs in its event loop."""
        return not self.busy
