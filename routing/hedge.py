"""A second upstream for a request whose first one does not begin to answer; the faster answer is used.

Off unless configured: it costs work that is thrown away. Neighbours: router.py (the attempts), budget.py (how many).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter

from routing.lane import Lane
from routing.policy import HEDGE
from routing.routed import Routed
from routing.ticket import Ticket


async def hedged(
    lane: Lane, ticket: Ticket, after_seconds: float, attempt: Callable[[Ticket], Awaitable[Routed]]
) -> Routed:
    """What `attempt` gives for `ticket`, or for a second one that keeps away from the upstream of the first. Raises
    what the first attempt raises when none has answered; a cancellation ends both."""
    began = perf_counter()
    tasks = [asyncio.ensure_future(attempt(ticket))]
    second: Ticket | None = None
    try:
        await asyncio.wait(tasks, timeout=after_seconds)
        if not tasks[0].done() and (second := _second(lane, ticket)) is not None:
            tasks.append(asyncio.ensure_future(attempt(second)))
        winner = await _first_answer(tasks)
        await _let_go([task for task in tasks if task is not winner])
    except BaseException:
        # The client left, perhaps while the slower one was ended: then the winner is nobody's.
        await _let_go(tasks)
        raise
    if second is not None:
        ticket.attempts += second.attempts
        if winner is tasks[1]:
            if ticket.upstream is not None and tasks[0].cancelled():
                # Its answer was never seen: a policy that goes by speed would ask it first again and again.
                now = perf_counter()
                ticket.upstream.outrun(now, now - began - ticket.waited_seconds)
            ticket.upstream = second.upstream
        elif second.upstream is not None:
            ticket.tried |= {second.upstream}
    return tasks[0].result() if winner is None else winner.result()


def _second(lane: Lane, ticket: Ticket) -> Ticket | None:
    """For another attempt, where there is somebody to ask and the budget allows it."""
    slow = ticket.upstream
    # Who still waits for a place has nobody to be faster than.
    if slow is None or not lane.has_others({slow}) or not lane.budget.spend():
        return None
    second = Ticket(ticket.key, ticket.tier, ticket.session)
    second.tried, second.elsewhere = ticket.tried | {slow}, HEDGE
    return second


async def _first_answer(tasks: Sequence[asyncio.Future[Routed]]) -> asyncio.Future[Routed] | None:
    """The first that has not failed; None when all have."""
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task in done and task.exception() is None:
                return task
    return None


async def _let_go(tasks: Sequence[asyncio.Future[Routed]]) -> None:
    """Ends what is still running; an answer that has come, or comes all the same, is aborted, whether or not somebody
    still waits here."""
    for task in tasks:
        task.cancel()
        task.add_done_callback(_abort)
    if tasks:
        await asyncio.wait(tasks)


def _abort(task: asyncio.Future[Routed]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()
