"""How long a worker that ended unasked waits for its next start. Pure. Neighbour: supervisor.py."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_DELAY_SECONDS = 0.1
MAX_DELAY_SECONDS = 10.0
# Serving for this long means that the last trouble is over.
STEADY_SECONDS = 60.0


@dataclass(slots=True)
class Delays:
    """Doubling from one trouble to the next, short again after a minute."""

    _next_seconds: float = FIRST_DELAY_SECONDS

    def after(self, lived_seconds: float) -> float:
        """The delay, in seconds, after a life that lasted `lived_seconds`."""
        if lived_seconds >= STEADY_SECONDS:
            self._next_seconds = FIRST_DELAY_SECONDS
        delay_seconds = self._next_seconds
        self._next_seconds = min(2 * delay_seconds, MAX_DELAY_SECONDS)
        return delay_seconds
