"""A worker's end of its channel to the keeper: what is known of the engines, and the numbers of all workers.

Neighbours: keeper.py (the other end), worker.py (builds the application with this), totals.py (what a page is).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry

from backends.base import Backend, BackendState
from backends.borrowed import BorrowedEngine
from backends.factory import create_backends
from backends.launch import EnginePlan
from backends.lifecycle import EngineStatus
from config.schema import ModelSettings
from gateway.workers.channel import Channel
from gateway.workers.tally import PATIENCE_SECONDS
from gateway.workers.totals import as_registry, dump

# The keeper waits so long for the slowest worker; then its own answer must come.
TOTAL_SECONDS = 2 * PATIENCE_SECONDS + 3.0


class KeeperGone(Exception):
    """There are no totals any more, and soon no worker: the keeper has ended."""


class Link:
    """Belongs to the worker's event loop. `listen` must run as long as the worker does; it closes the channel."""

    def __init__(self, channel: Channel, engines: Mapping[str, EngineStatus]) -> None:
        self._channel = channel
        self._engines = {name: BorrowedEngine(name.rpartition("/")[2], status) for name, status in engines.items()}
        self._registry = CollectorRegistry()
        self._totals: list[asyncio.Future[CollectorRegistry]] = []
        self._gone = False

    @classmethod
    async def open(cls, end: socket.socket) -> Link:
        """Returns once the state of every engine is known: before that, a request could only be refused. Raises
        KeeperGone."""
        channel = await Channel.open(end)
        first = await channel.receive()
        if first is None:
            channel.close()
            raise KeeperGone("the keeper ended before it said anything")
        return cls(channel, {name: status_from(fields) for name, fields in first["engines"].items()})

    def backends(self, model: ModelSettings) -> tuple[Backend, ...]:
        """The calls to what serves `model`: the keeper's engines, and endpoints that somebody else runs."""

        def borrow(plan: EnginePlan) -> Backend:
            return self._engines[plan.name]

        return create_backends(model, borrow)

    def share(self, registry: CollectorRegistry) -> Callable[[], Awaitable[CollectorRegistry]]:
        """`registry` shows this worker's numbers, to be asked for from now on. Returns `total`."""
        self._registry = registry
        return self.total

    def serving(self) -> None:
        """Tells that this worker accepts connections."""
        self._channel.send({"say": "serving"})

    def send_numbers(self) -> None:
        """This worker's numbers as they are now; unasked, they are its last."""
        self._channel.send({"numbers": dump(self._registry)})

    async def total(self) -> CollectorRegistry:
        """The numbers of all workers. Raises TimeoutError or KeeperGone: a page with a part of them would look like
        counters that were reset."""
        if self._gone:
            raise KeeperGone("the keeper has ended")
        answer: asyncio.Future[CollectorRegistry] = asyncio.get_running_loop().create_future()
        self._totals.append(answer)
        self._channel.send({"ask": "total"})
        async with asyncio.timeout(TOTAL_SECONDS):
            return await answer

    async def listen(self) -> None:
        """Hears the keeper; returns when it is gone. From then on every engine counts as failed."""
        try:
            while (message := await self._channel.receive()) is not None:
                self._hear(message)
        finally:
            self._channel.close()
            self._lose()

    def _lose(self) -> None:
        self._gone = True
        for engine in self._engines.values():
            engine.tell(EngineStatus("", BackendState.FAILED, failure="its keeper has ended"))
        for answer in self._totals:
            if not answer.done():
                answer.set_exception(KeeperGone("the keeper has ended"))

    def _hear(self, message: dict[str, Any]) -> None:
        for name, fields in message.get("engines", {}).items():
            self._engines[name].tell(status_from(fields))
        if message.get("ask") == "numbers":
            self.send_numbers()
        if "total" in message:
            # Answers come in the order of the questions.
            answer = self._totals.pop(0)
            if not answer.done():
                answer.set_result(as_registry(message["total"]))


def status_from(fields: Mapping[str, Any]) -> EngineStatus:
    """An EngineStatus out of the JSON that `dataclasses.asdict` makes of it."""
    return EngineStatus(**{**fields, "state": BackendState(fields["state"])})
