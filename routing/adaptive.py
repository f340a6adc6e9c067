"""How many requests an upstream may have at once where nobody says it: additive increase, multiplicative decrease.

TCP's way, with the time to the first token as the sign of too much. Pure. Neighbours: upstream.py.
"""

from __future__ import annotations

from math import inf

START = 8.0
MOST = 1024.0
_DECREASE = 0.8


class AdaptiveLimit:
    """`value` rises by one for each round of answers while it is used up, and falls by a fifth when a first token took
    longer than `target_seconds`: once in that time at most, for all answers of one moment tell of the same queue."""

    __slots__ = ("_cut_at", "target_seconds", "value")

    def __init__(self, target_seconds: float = 2.0) -> None:
        self.target_seconds = target_seconds
        self._cut_at = -inf
        self.value = START

    def answered(self, now: float, first_token_seconds: float, in_flight: int) -> None:
        """A stream has begun after `first_token_seconds`, with `in_flight` requests there, itself included."""
        if first_token_seconds > self.target_seconds:
            if now - self._cut_at >= self.target_seconds:
                self._cut_at = now
                self.value = max(1.0, self.value * _DECREASE)
        elif in_flight + 1 > self.value:
            self.value = min(MOST, self.value + 1 / self.value)
