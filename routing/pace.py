"""How fast an upstream has been lately: moving averages of what its answers took. Pure.

Neighbours: upstream.py (keeps one), policy.py (predicts with it), router.py (measures).
"""

from __future__ import annotations

from typing import NamedTuple

# A new measurement counts this much. Ten answers later the old picture is a third of the average.
_WEIGHT = 0.1


class Pace(NamedTuple):
    """Seconds, None while nothing was measured: from dispatch to the first token of a stream, between tokens, and from
    dispatch to the end of an answer. `measured_at` is `time.perf_counter()`; `crowd` is how many requests were in
    flight there when those that were measured were sent, themselves included."""

    first_token_seconds: float | None = None
    inter_token_seconds: float | None = None
    service_seconds: float | None = None
    measured_at: float = 0.0
    crowd: float = 1.0

    def with_answer(
        self, now: float, service_seconds: float, first_token_seconds: float | None, tokens: int, in_flight: int = 1
    ) -> Pace:
        """After one more whole answer, which was one of `in_flight` when it was sent. Only streams have
        `first_token_seconds` and `tokens`."""
        first, between, service, _, crowd = self
        if service is None:
            service, crowd = service_seconds, float(in_flight)
        else:
            service += _WEIGHT * (service_seconds - service)
            crowd += _WEIGHT * (in_flight - crowd)
        if first_token_seconds is not None:
            first = first_token_seconds if first is None else first + _WEIGHT * (first_token_seconds - first)
            if tokens > 1:
                pause = (service_seconds - first_token_seconds) / (tokens - 1)
                between = pause if between is None else between + _WEIGHT * (pause - between)
        return _new(Pace, (first, between, service, now, crowd))


# What the constructor does, in a third of the time; this is done for each answer.
_new = tuple.__new__
