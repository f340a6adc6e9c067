"""The task behind one connection: it serves the connection's calls one after the other.

asyncio writes every new task into a set of its own, in Python, and out again: a task for each call cost 2 µs more.
Neighbours: listener.py (owns one per connection), dataplane.py (what serving is).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gateway.call import Call


class Servant:
    """Serves the calls of one connection, on its `loop`."""

    __slots__ = ("_closed", "_idle", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._closed = False
        # The task that has served a call to its end, and what tells it of the next one.
        self._idle: tuple[asyncio.Task[None], asyncio.Future[Call | None]] | None = None

    def begin(self, call: Call, serve: Callable[[Call], Awaitable[None]]) -> asyncio.Task[None]:
        """Serves `call` by `serve`, which never raises, in the task that is returned; afterwards that one may go on
        with other calls."""
        if self._idle is None:
            task = self._loop.create_task(self._work(call, serve))
        else:
            task, waiting = self._idle
            self._idle = None
            waiting.set_result(call)
        call.servant = task
        return task

    def close(self) -> None:
        """No more calls will come."""
        self._closed = True
        if self._idle is not None and not self._idle[1].done():
            self._idle[1].set_result(None)

    async def _work(self, call: Call | None, serve: Callable[[Call], Awaitable[None]]) -> None:
        while call is not None:
            task = call.servant
            await serve(call)
            # With requests pipelined the next one begins before this one's task is back here, in another task.
            if task is None or self._idle is not None or self._closed:
                return
            call = None  # what it holds need not wait for the next one
            waiting: asyncio.Future[Call | None] = self._loop.create_future()
            self._idle = task, waiting
            call = await waiting
