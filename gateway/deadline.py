"""One timer per connection, however many requests, phases and chunks pass over it.

Moving the deadline on is a plain assignment; the timer looks at it when it fires and goes to sleep again for the rest.
Neighbours: listener.py (owns it), call.py (says what is expected of a request).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf


class Deadline:
    """Until when something has to happen, and what follows if it does not. Times are the loop's, in seconds."""

    __slots__ = ("_armed", "_due", "_late", "_loop", "_seconds", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._armed = inf
        self._due = inf
        self._seconds = inf
        self._late: Callable[[], object] | None = None

    def expect(self, seconds: float, late: Callable[[], object]) -> None:
        """From now on something has to happen every `seconds`, or `late` is called, once. Replaces what was expected
        before."""
        self._seconds = seconds
        self._late = late
        self._due = due = self._loop.time() + seconds
        if due < self._armed:
            self._arm(due)

    def progress(self) -> None:
        """Something happened: as much time again as was last expected."""
        self._due = self._loop.time() + self._seconds

    def forget(self) -> None:
        """Nothing is expected until the next `expect`."""
        self._due = inf
        # Usually a bound method of a request: letting go of it spares the garbage collector a cycle.
        self._late = None

    def close(self) -> None:
        """Nothing is expected any more. Idempotent."""
        self.forget()
        self._armed = inf
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed = due
        self._timer = self._loop.call_at(due, self._look)

    def _look(self) -> None:
        self._timer = None
        self._armed = inf
        if self._loop.time() < self._due:
            if self._due < inf:
                self._arm(self._due)
            return
        late = self._late
        self.forget()
        if late is not None:
            late()
