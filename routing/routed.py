"""An answer that has begun, and the one way to give it back.

Neighbours: router.py (makes it), the gateway's relay (holds it), lane.py (gets the place back).
"""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter

from backends.base import BackendResponse
from backends.errors import BackendError
from routing.lane import Lane
from routing.upstream import Upstream


@dataclass(slots=True)
class Routed:
    """An answer that has begun. Whoever holds it must `close()` it; until then it counts as in flight. `reason` is
    why this upstream: one word, safe in a header and as a metric label. `dispatched_at` is `time.perf_counter()`, and
    `in_flight` how many the upstream had then, this one included; 0 where that says nothing (lane.py)."""

    response: BackendResponse
    upstream: Upstream
    reason: str
    dispatched_at: float
    in_flight: int
    _lane: Lane
    _counted: bool = True

    def succeeded(self, first_token_at: float | None, tokens: int) -> None:
        """The whole answer has come. Of a stream: when its first token came (`time.perf_counter()`), how many."""
        now, began = perf_counter(), self.dispatched_at
        first_token_seconds = None if first_token_at is None else first_token_at - began
        self.upstream.answered(now, now - began, first_token_seconds, tokens, self.in_flight)

    def failed(self, error: BackendError) -> None:
        """The answer broke off."""
        self._lane.failed(self.upstream, error)

    def close(self) -> None:
        """Returns or aborts the upstream's connection and gives up the place in its count. Idempotent."""
        try:
            self.response.close()
        finally:
            # After the engine was told, not before: the count is what the engine has to carry. And even when telling
            # it failed: a leaked count would keep traffic away from this upstream for ever.
            if self._counted:
                self._counted = False
                self._lane.give_back(self.upstream)
