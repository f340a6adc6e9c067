"""Asks all workers that may use an engine to send it nothing any more, before it is stopped for having nothing to do.

A worker that has no request on it says yes and takes the engine for asleep from that moment on; one that has says no,
and then it goes on for all. Neighbours: kept.py (whose engine), link.py (answers), backends/residency.py (asks).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from typing import Any

from gateway.workers.channel import Channel

# A worker that is busy for longer than this has something to do.
PATIENCE_SECONDS = 2.0


class Rest:
    """Of one engine. `resting`: workers are to take it for asleep though it is still READY."""

    def __init__(
        self, number: int, users: Callable[[], Collection[Channel]], status: Callable[[], dict[str, Any]]
    ) -> None:
        """`users` are the workers that may have requests on engine `number`, `status` is what they are told of it."""
        self._number = number
        self._users = users
        self._status = status
        self._used = False
        self._wanted = False
        self._unheard: set[Channel] = set()
        self._answer: asyncio.Future[None] | None = None
        self.resting = False

    def note_use(self) -> None:
        """A worker has or had a request for it."""
        self._used = True

    def used(self) -> bool:
        """Whether any worker has noted a use since this was last asked."""
        used, self._used = self._used, False
        return used

    async def let_go(self) -> bool:
        """Whether no worker sends it anything from now on."""
        self.resting, self._wanted = True, False
        self._unheard = set(self._users())
        if self._unheard:
            self._answer = asyncio.get_running_loop().create_future()
            for channel in self._unheard:
                channel.send({"rest": self._number})
            await asyncio.wait({self._answer}, timeout=PATIENCE_SECONDS)
        may = not self._unheard and not self._wanted
        self._unheard, self._answer = set(), None
        if not may:
            self.resume()
        return may

    def resume(self) -> None:
        """It is as its status says, for everybody."""
        self.resting = False
        for channel in self._users():
            channel.send({"engines": self._status()})

    def hear(self, channel: Channel, *, may: bool) -> None:
        """A worker has answered, or is gone, which is a yes."""
        if may:
            self._unheard.discard(channel)
        else:
            self._wanted = True
        self._settle()

    def want(self) -> None:
        """A worker that had said yes has a request for it now."""
        self._wanted = True
        self._settle()

    def _settle(self) -> None:
        if self._answer is not None and not self._answer.done() and (self._wanted or not self._unheard):
            self._answer.set_result(None)
