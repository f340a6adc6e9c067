"""The connections of one client: how many there may be, who waits for one, which are kept and for how long.

Neighbours: http.py (asks for connections), http_connection.py (tells when it is free, and when it is gone).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from math import inf

from backends.errors import BackendUnavailable
from backends.http_connection import Connection

# Timeouts are noticed by one sweep over all connections, not by a timer per request: this much late at most.
SWEEP_SECONDS = 1.0


class Pool:
    """At most `max_connections`, the ones being made included; further callers wait in turn. `dial` makes one or raises
    BackendUnavailable; `address` is for messages. Belongs to one event loop."""

    def __init__(
        self,
        address: str,
        dial: Callable[[], Awaitable[Connection]],
        *,
        max_connections: int,
        connect_timeout_seconds: float,
        idle_seconds: float,
        sweep_seconds: float,
    ) -> None:
        if max_connections < 1:
            raise ValueError(f"a client needs at least one connection, not {max_connections}")
        self._address = address
        self._dial = dial
        self._max_connections = max_connections
        self._connect_timeout_seconds = connect_timeout_seconds
        self._idle_seconds = idle_seconds
        self._sweep_seconds = min(SWEEP_SECONDS, sweep_seconds)
        self._free_places = max_connections
        self._connections: set[Connection] = set()
        self._idle: dict[Connection, None] = {}  # in order of their return: the last one is the warmest
        # First come, first served: with a connection, or with None for a place to make one in.
        self._waiting: OrderedDict[asyncio.Future[Connection | None], None] = OrderedDict()
        self._sweeper: asyncio.TimerHandle | None = None
        self._emptied: asyncio.Future[None] | None = None
        self._closed = False

    def take(self) -> Connection | None:
        """The connection that was used last, if any is idle. It comes back through `free` or ends in `forget`."""
        while self._idle:
            connection, _ = self._idle.popitem()
            # The loop may have been busy for longer than the sweep should have taken.
            if connection.deadline > connection.loop.time() and not connection.is_closing():
                return connection
            connection.close()
        return None

    async def connect(self, *, fresh: bool = False) -> Connection:
        """A new connection, or one that another caller has just given back; with `fresh` only a new one, before all who
        wait already. Raises BackendUnavailable when there is none in time."""
        limit = None if self._connect_timeout_seconds == inf else self._connect_timeout_seconds
        waits = True
        try:
            async with asyncio.timeout(limit):
                connection = await self._place(fresh)
                waits = False
                return connection or await self._make()
        except TimeoutError:
            # Nothing was sent: another upstream may be asked, which BackendTimeout would forbid.
            cause = f": all {self._max_connections} allowed are in use" if waits else ""
            raise BackendUnavailable(f"No connection to {self._address} within {limit} s{cause}.") from None

    def free(self, connection: Connection) -> None:
        """It may be used again."""
        if self._waiting and self._hand_on(connection):
            return
        connection.deadline = connection.loop.time() + self._idle_seconds
        self._idle[connection] = None

    def forget(self, connection: Connection) -> None:
        """It is gone."""
        if connection in self._connections:
            self._connections.discard(connection)
            self._idle.pop(connection, None)
            self._give_place()
        if not self._connections and self._emptied is not None and not self._emptied.done():
            self._emptied.set_result(None)

    def abandon(self, why: str) -> None:
        """Ends every exchange whose answer has not begun."""
        for connection in list(self._connections):
            connection.abandon(why)

    async def aclose(self) -> None:
        """Closes all connections, those in use too, and returns when they are gone. Idempotent."""
        self._closed = True
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        while self._hand_on(None):
            pass
        for connection in list(self._connections):
            connection.close()
        if self._connections:
            self._emptied = self._emptied or asyncio.get_running_loop().create_future()
            await asyncio.shield(self._emptied)

    async def _place(self, fresh: bool) -> Connection | None:
        """None: there is room for one more, and it is the caller's."""
        self._refuse_if_closed()
        if self._free_places:  # then nobody waits
            self._free_places -= 1
            return None
        while True:
            connection = await self._turn(fresh)
            if connection is None or not fresh:
                return connection
            connection.close()  # its end makes room, and we are the first in the line

    async def _turn(self, first: bool) -> Connection | None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting[waiter] = None
        if first:
            self._waiting.move_to_end(waiter, last=False)
            self._make_room()
        try:
            connection: Connection | None = await waiter
        except asyncio.CancelledError:
            self._waiting.pop(waiter, None)
            if not waiter.cancelled():  # what it got crossed the cancelling: on to the next
                connection = waiter.result()
                self._give_place() if connection is None else self.free(connection)
            raise
        self._refuse_if_closed()
        return connection

    async def _make(self) -> Connection:
        """Takes up the caller's place."""
        try:
            connection = await self._dial()
        except BaseException:
            self._give_place()
            raise
        if connection.lost:
            self._give_place()
            return connection  # which tells the one who tries to use it
        self._connections.add(connection)
        if self._closed:
            connection.close()
        self._refuse_if_closed()
        if self._sweeper is None:
            self._sweeper = connection.loop.call_later(self._sweep_seconds, self._sweep, connection.loop)
        return connection

    def _give_place(self) -> None:
        if not self._hand_on(None):
            self._free_places += 1

    def _hand_on(self, connection: Connection | None) -> bool:
        """Gives a connection or a place to the first who waits; False if nobody does."""
        while self._waiting:
            waiter, _ = self._waiting.popitem(last=False)
            if not waiter.done():
                waiter.set_result(connection)
                return True
        return False

    def _make_room(self) -> None:
        """Ends the connection that has been idle for longest, if any."""
        if self._idle:
            next(iter(self._idle)).close()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise BackendUnavailable(f"The client of {self._address} is closed.")

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for connection in [each for each in self._connections if each.deadline <= now]:
            connection.expire()
        self._sweeper = loop.call_later(self._sweep_seconds, self._sweep, loop) if self._connections else None
