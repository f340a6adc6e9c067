"""How fast an upstream has been lately: moving averages of what its answers took. Pure.

Neighbours: upstream.py (keeps one), policy.py (predicts with it), router.py (measures).
"""

from __future__ import annotations

from typing import NamedTuple

# A new measurement counts this much. Ten answers later the old picture is a third of the average.
_WEIGHT = 0.1


class Pace(NamedTuple):
    """Seconds, None while nothing was measured: from dispatch to the first token of a stream, between tokens, and from
    dispatch to the end of an answer. `measured_at` is `time.perf_counter()`."""

    first_token_seconds: float | None = None
    inter_token_seconds: float | None = None
    service_seconds: float | None = None
    measured_at: float = 0.0

    def with_answer(self, now: float, service_seconds: float, first_token_seconds: float | None, events: int) -> Pace:
        """After one more whole answer. Only streams have `first_token_seconds`; an event is about a token."""
        first, between = self.first_token_seconds, self.inter_token_seconds
        if first_token_seconds is not None:
            first = _mean(first, first_token_seconds)
            if events > 1:
                between = _mean(between, (service_seconds - first_token_seconds) / (events - 1))
        return Pace(first, between, _mean(self.service_seconds, service_seconds), now)


def _mean(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _WEIGHT * (value - mean)
