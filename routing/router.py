"""Sends a request to an upstream of its model and counts it there until its response is closed.

Neighbours: catalog.py (name to pool), lane.py (decides and waits), retry.py and hedge.py (further attempts),
backends/base.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter

from backends.base import InferenceRequest
from backends.errors import BackendError
from routing.catalog import ModelCatalog
from routing.hedge import hedged
from routing.lane import Lane
from routing.policy import FASTEST, ONLY, QUIET, Plan, plan_for
from routing.recall import Recalled
from routing.retry import retrying
from routing.routed import Routed
from routing.ticket import Ticket
from routing.tracefile import TraceFile

# Chosen by a policy under which whole models move: they go along.
_MOVING = (QUIET, FASTEST)


class Router:
    """Dispatches over the pools of one catalog, each by its plan in `plans`; models without one have the defaults. This
    is one of so many `workers`; decisions are recorded in `trace`."""

    def __init__(
        self,
        catalog: ModelCatalog,
        plans: Mapping[str, Plan] | None = None,
        workers: int = 1,
        trace: TraceFile | None = None,
    ) -> None:
        self._workers = workers
        self._trace = trace
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
                lane = Lane(pool, plan, self._workers, self._trace)
            else:
                lane.adopt(pool, plan)
            self.lanes[pool.model] = lane

    @property
    def waiting(self) -> list[tuple[str, int]]:
        """How many requests of each model wait."""
        return [(model, len(lane.admission)) for model, lane in self.lanes.items()]

    def waiting_for(self, model: str) -> int:
        """How many requests of `model` wait; 0 for one that is not served."""
        lane = self.lanes.get(model)
        return 0 if lane is None else len(lane.admission)

    async def dispatch(self, request: InferenceRequest, ticket: Ticket | None = None) -> Routed:
        """Returns once an upstream has answered with headers; others are asked before that where one fails. Raises
        RoutingError or the last upstream's BackendError; after an error or a cancellation nothing is left in flight."""
        ticket = ticket or Ticket()
        lane = self.lanes.get(request.model) or self.lanes[self.catalog.resolve(request.model).model]
        lane.budget.earn()
        hedge_seconds = lane.plan.retry.hedge_after_seconds
        try:
            if hedge_seconds is not None and len(lane.pool.upstreams) > 1:
                return await hedged(lane, ticket, hedge_seconds, lambda ticket: _attempt(lane, request, ticket))
            return await _attempt(lane, request, ticket)
        except BackendError as error:
            failure: BackendError | None = error
        # Made for those that failed only: it costs as much as all the rest of a dispatch.
        async for attempt in retrying(lane, ticket):
            with attempt:
                if failure is not None:
                    first, failure = failure, None
                    raise first
                return await _attempt(lane, request, ticket)
        raise AssertionError("the last attempt raises")


async def _attempt(lane: Lane, request: InferenceRequest, ticket: Ticket) -> Routed:
    upstream, reason = lane.quick(), ONLY
    if upstream is None:
        ticket.upstream = None
        ticket.entered_at = ticket.entered_at or perf_counter()
        upstream, reason = await lane.admission.enter(lane.ask(request, ticket), ticket)
    ticket.upstream = upstream
    ticket.attempts += 1
    dispatched_at = perf_counter()
    # Where there is nobody else nothing is compared.
    in_flight = 0 if reason is ONLY else lane.crowd(upstream, dispatched_at)
    try:
        if reason in _MOVING:
            response = await lane.recalls.send(upstream, request)
        else:
            response = await upstream.backend.send(request)
    except Recalled:
        upstream.breaker.undecided()
        lane.give_back(upstream)
        # As if it came now: what it has waited for an engine is no time in the queue.
        ticket.attempts, ticket.entered_at = ticket.attempts - 1, 0.0
        return await _attempt(lane, request, ticket)
    except BaseException as error:
        if not isinstance(error, BackendError):
            upstream.breaker.undecided()
        elif upstream is not ticket.blamed:
            # One request that asks three times in a tenth of a second has met one failure.
            ticket.blamed = upstream
            lane.failed(upstream, error)
        else:
            upstream.breaker.undecided()
        lane.give_back(upstream)
        raise
    if not upstream.breaker.clear:
        upstream.breaker.succeeded(perf_counter())
    return Routed(response, upstream, reason, dispatched_at, in_flight, lane)
