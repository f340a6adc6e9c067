"""Where requests of one model wait while none of its upstreams can take one more: bounded, fair, with a deadline.

Neighbours: waiting.py (whose turn it is), lane.py (what is waited for), router.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import perf_counter

from config.routing import QueueSettings
from routing.ask import Ask
from routing.errors import RoutingError
from routing.ticket import Ticket
from routing.upstream import Upstream
from routing.waiting import FairQueue

# States of engines, breakers and deadlines are looked at this often while somebody waits.
TICK_SECONDS = 0.05
# Behind so many who cannot be served now nobody is looked at when a place becomes free. Each tick looks at so many
# more, from where the last one has left off: a look costs as much as a decision.
_LOOK_PAST, _LOOK_AT_IN_TICK = 4, 64

Place = tuple[Upstream, str]


class _Waiter:
    """One waiting request. Times are `time.perf_counter()`."""

    __slots__ = ("ask", "deadline", "future", "ping_at", "ticket")

    def __init__(self, ask: Ask, ticket: Ticket, now: float, settings: QueueSettings) -> None:
        self.ask = ask
        self.ticket = ticket
        self.deadline = ticket.entered_at + settings.max_wait_seconds
        self.ping_at = now + settings.ping_seconds
        self.future: asyncio.Future[Place] = asyncio.get_running_loop().create_future()


class Admission:
    """`take` gives a request a place if there is one, and counts it there; `put_back` takes one back to which nothing
    was sent; `give_up` says why a request that got none has to go away, None while there is hope. Belongs to the event
    loop."""

    def __init__(
        self,
        settings: QueueSettings,
        take: Callable[[Ask, Ticket], Place | None],
        put_back: Callable[[Upstream], None],
        give_up: Callable[[Ask, Ticket, bool], Exception | None],
    ) -> None:
        self.settings = settings
        self._take = take
        self._put_back = put_back
        self._give_up = give_up
        self.queue: FairQueue[_Waiter] = FairQueue()
        self._looked_at = 0
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self.queue)

    async def enter(self, ask: Ask, ticket: Ticket) -> Place:
        """A place, counted, which the caller must give back. Raises what `take` and `give_up` say. Who is cancelled
        while waiting leaves nothing behind."""
        if not self.queue:
            place = self._take(ask, ticket)
            if place is not None:
                return place
        now, priority = perf_counter(), self.settings.priority.get(ask.tier or "", 0)
        over = now - ticket.entered_at >= self.settings.max_wait_seconds
        outcast: _Waiter | None = None
        if not over and len(self.queue) >= self.settings.max_waiting:
            # All of them may wait for something else than this one needs.
            if self.queue and (place := self._take(ask, ticket)) is not None:
                return place
            outcast = self.queue.outranked(priority, ask.key)
            over = outcast is None
        error = self._give_up(ask, ticket, over)
        if error is not None:
            raise error
        if outcast is not None:
            self._push_out(outcast)
        waiter = _Waiter(ask, ticket, now, self.settings)
        self.queue.add(waiter, priority, ask.key)
        self._plan()
        # Others that wait may wait for something else than this one needs.
        self.wake()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                self._put_back(waiter.future.result()[0])
            raise
        finally:
            ticket.waited_seconds += perf_counter() - now
            if waiter in self.queue:
                self.queue.remove(waiter)

    def wake(self) -> None:
        """A place may have become free: serves whoever can be served, in the order of their turns."""
        self._serve(list(self.queue), _LOOK_PAST)

    def _serve(self, waiters: Sequence[_Waiter], look_past: int) -> None:
        for waiter in waiters:
            if waiter.future.done():  # it was served, or its client has left and it will be gone in a moment
                continue
            try:
                place = self._take(waiter.ask, waiter.ticket)
            except RoutingError as error:
                self._settle(waiter, error)
                continue
            if place is not None:
                self._settle(waiter, place)
                continue
            look_past -= 1
            if look_past < 0:
                return

    def _push_out(self, waiter: _Waiter) -> None:
        error = self._give_up(waiter.ask, waiter.ticket, True)
        if error is not None and not waiter.future.done():
            self._settle(waiter, error)

    def _settle(self, waiter: _Waiter, outcome: Place | Exception) -> None:
        """For one whose client is there."""
        self.queue.remove(waiter, served=not isinstance(outcome, Exception))
        if isinstance(outcome, Exception):
            waiter.future.set_exception(outcome)
        else:
            waiter.future.set_result(outcome)

    def _plan(self) -> None:
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        self._timer = None
        waiters = list(self.queue)
        # However many wait ahead for something else, everybody is looked at in turn; the first ones each time.
        begin = self._looked_at if self._looked_at < len(waiters) else 0
        self._looked_at = begin + _LOOK_AT_IN_TICK
        if begin:
            self._serve(waiters, _LOOK_PAST)
        self._serve(waiters[begin : self._looked_at], _LOOK_AT_IN_TICK)
        now = perf_counter()
        for position, waiter in enumerate(list(self.queue), 1):
            if waiter.future.done():
                continue
            error = self._give_up(waiter.ask, waiter.ticket, now >= waiter.deadline)
            if error is not None:
                self._settle(waiter, error)
            elif now >= waiter.ping_at and waiter.ticket.notify is not None:
                waiter.ping_at = now + self.settings.ping_seconds
                waiter.ticket.notify(position)
        if self.queue:
            self._plan()
