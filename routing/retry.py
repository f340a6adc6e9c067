"""One more attempt after a failure before the first byte: whether, where and when.

Neighbours: router.py (the loop), budget.py (how many in all), backends/errors.py (`retryable` is a fact of the class).
"""

from __future__ import annotations

from math import inf
from time import perf_counter

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from backends.errors import (
    BackendError,
    BackendLoading,
    BackendProtocolError,
    BackendUnavailable,
    ContextLengthExceeded,
)
from routing.lane import Lane
from routing.policy import CAPABILITY
from routing.ticket import Ticket
from routing.upstream import free_in_seconds

# Only before the same upstream is asked again; another one is asked at once.
_PAUSE = wait_random_exponential(multiplier=0.05, max=1.0)


def retrying(lane: Lane, ticket: Ticket) -> AsyncRetrying:
    """The attempts of one request, the first one included; the last error is raised as it is."""

    def pause_seconds(state: RetryCallState) -> float:
        return 0.0 if ticket.tried else _PAUSE(state)

    return AsyncRetrying(
        retry=retry_if_exception(lambda error: isinstance(error, BackendError) and goes_on(lane, ticket, error)),
        stop=stop_after_attempt(lane.plan.retry.attempts),
        wait=pause_seconds,
        reraise=True,
    )


def goes_on(lane: Lane, ticket: Ticket, error: BackendError) -> bool:
    """Whether there is another attempt after `error`. Notes on the ticket who is not asked again."""
    failed = ticket.upstream
    if failed is None:  # it has not got to anybody
        return False
    if isinstance(error, ContextLengthExceeded):
        # Its kin have the same context; another kind may have more.
        ticket.elsewhere = CAPABILITY
        ticket.tried |= {upstream for upstream in lane.pool.upstreams if upstream.kind == failed.kind}
        # Nobody else ever could: this is worth waiting for.
        return lane.has_others(ticket.tried, patient=True) and lane.budget.spend()
    if not error.retryable:
        return False
    ticket.tried |= {failed}
    if isinstance(error, BackendProtocolError):
        # It may have computed something for nobody: once is an accident, twice would be this request's fault.
        ticket.resets += 1
        if ticket.resets > 1:
            return False
    if not lane.has_others(ticket.tried):
        if not isinstance(error, BackendUnavailable) or isinstance(error, BackendLoading):
            if error.retry_after_seconds is not None:
                # The client may come back as soon as any of them wants to be asked again, not only the last one.
                soonest = free_in_seconds(ticket.tried, perf_counter())
                error.retry_after_seconds = min(error.retry_after_seconds, soonest or inf)
            return False
        # Nothing was sent, and there is nobody else: a server that restarts is back in a moment.
        ticket.tried = frozenset()
    return lane.budget.spend()
