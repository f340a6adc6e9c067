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
        first, between, service, _ = self
        service = service_seconds if service is None else service + _WEIGHT * (service_seconds - service)
        if first_token_seconds is not None:
            first = first_token_seconds if first is None else first + _WEIGHT * (first_token_seconds - first)
            if events > 1:
                pause = (service_seconds - first_token_seconds) / (events - 1)
                between = pause if between is None else between + _WEIGHT * (pause - between)
        return _new(Pace, (first, between, service, now))


# What the constructor does, in a third of the time; this is done for each answer.
_new = tuple.__new__
