"""Sends a request to an upstream of its model and counts it there until its response is closed.

Neighbours: catalog.py (name to pool), lane.py (decides), upstream.py (the count), backends/base.py (the call).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter

from backends.base import BackendResponse, InferenceRequest
from routing.catalog import ModelCatalog
from routing.lane import Lane
from routing.policy import ONLY, Plan, plan_for
from routing.ticket import Ticket
from routing.upstream import Upstream


@dataclass(slots=True)
class Routed:
    """An answer that has begun. Whoever holds it must await `aclose()`; until then it counts as in flight. `reason` is
    why this upstream: one word, safe in a header and as a metric label. `dispatched_at` is `time.perf_counter()`."""

    response: BackendResponse
    upstream: Upstream
    reason: str
    dispatched_at: float
    _counted: bool = True

    def succeeded(self, first_token_at: float | None, events: int) -> None:
        """The whole answer has come. Of a stream: when its first token came (`time.perf_counter()`), and its events."""
        upstream, now, began = self.upstream, perf_counter(), self.dispatched_at
        first_token_seconds = None if first_token_at is None else first_token_at - began
        upstream.pace = upstream.pace.with_answer(now, now - began, first_token_seconds, events)

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
    """Dispatches over the pools of one catalog, each by its plan in `plans`; models without one have the defaults."""

    def __init__(self, catalog: ModelCatalog, plans: Mapping[str, Plan] | None = None) -> None:
        self.lanes: dict[str, Lane] = {}
        self.adopt(catalog, plans or {})

    def adopt(self, catalog: ModelCatalog, plans: Mapping[str, Plan]) -> None:
        """Another catalog from the next request on. A model that stays keeps what routing knows of it."""
        self.catalog = catalog
        before, self.lanes = self.lanes, {}
        for pool in catalog.pools:
            plan = plans.get(pool.model) or plan_for(pool.model)
            lane = before.get(pool.model)
            if lane is None:
                lane = Lane(pool, plan)
            else:
                lane.adopt(pool, plan)
            self.lanes[pool.model] = lane

    async def dispatch(self, request: InferenceRequest, ticket: Ticket | None = None) -> Routed:
        """Returns once an upstream has answered with headers. Raises RoutingError or the upstream's BackendError; after
        an error or a cancellation nothing is left in flight."""
        lane = self.lanes[self.catalog.resolve(request.model).model]
        upstream, reason = lane.only, ONLY
        if upstream is None:
            upstream, reason = lane.choose(lane.ask(request, ticket or Ticket()))
            # Where none can take it, the first one says why not.
            upstream = upstream or lane.pool.upstreams[0]
        upstream.in_flight += 1
        try:
            dispatched_at = perf_counter()
            response = await upstream.backend.send(request)
        except BaseException:
            upstream.in_flight -= 1
            raise
        return Routed(response, upstream, reason, dispatched_at)
