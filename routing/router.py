"""Sends a request to an upstream of its model and counts it there until its response is closed.

Neighbours: catalog.py (name to pool), upstream.py (the count), backends/base.py (the call).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from backends.base import BackendResponse, BackendState, InferenceRequest
from routing.catalog import ModelCatalog
from routing.upstream import Upstream, UpstreamPool


class Decision(NamedTuple):
    """Which upstreams may serve a request, best first, and why: one word, safe in a header and as a metric label."""

    upstreams: tuple[Upstream, ...]
    reason: str


@dataclass(slots=True)
class Routed:
    """An answer that has begun. Whoever holds it must await `aclose()`; until then it counts as in flight."""

    response: BackendResponse
    upstream: Upstream
    decision: Decision
    _counted: bool = True

    async def aclose(self) -> None:
        """Returns or aborts the upstream's connection and gives up the place in its count. Idempotent."""
        try:
            await self.response.close()
        finally:
            # After the engine was told, not before: the count is what the engine has to carry. And even when telling
            # it failed: a leaked count would keep traffic away from this upstream for ever.
            if self._counted:
                self._counted = False
                self.upstream.in_flight -= 1


class Router:
    """Dispatches over the pools of one catalog."""

    def __init__(self, catalog: ModelCatalog) -> None:
        self.catalog = catalog

    async def dispatch(self, request: InferenceRequest) -> Routed:
        """Returns once an upstream has answered with headers. Raises ModelNotFound or the upstream's BackendError;
        after an error or a cancellation nothing is left in flight."""
        decision = _decide(self.catalog.resolve(request.model))
        upstream = decision.upstreams[0]
        upstream.in_flight += 1
        try:
            response = await upstream.backend.send(request)
        except BaseException:
            upstream.in_flight -= 1
            raise
        return Routed(response, upstream, decision)


def _decide(pool: UpstreamPool) -> Decision:
    """The first upstream that is ready; where none is, the first one, which says why not."""
    if len(pool.upstreams) == 1:
        return Decision(pool.upstreams, "only")
    ready = tuple(upstream for upstream in pool.upstreams if upstream.backend.state is BackendState.READY)
    return Decision(ready or pool.upstreams, "first_ready")
