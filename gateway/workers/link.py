"""A worker's end of its channel to the keeper: what is known of the engines, and the numbers of all workers.

Neighbours: keeper.py (the other end), worker.py (builds the application with this), totals.py (what a page is).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry

from backends.base import Backend, BackendState
from backends.borrowed import BorrowedEngine
from backends.factory import create_backends
from backends.launch import EnginePlan
from backends.lifecycle import EngineStatus, going_to_sleep
from backends.residency import pause_seconds
from config.errors import ConfigError
from config.schema import ModelSettings, Settings
from gateway.ratelimit_store import StoreFull
from gateway.usage import Usage
from gateway.workers.channel import Channel
from gateway.workers.kept import Configuration, configuration_from
from gateway.workers.tally import PATIENCE_SECONDS
from gateway.workers.totals import as_registry, dump

# The keeper waits so long for the slowest worker; then its own answer must come.
TOTAL_SECONDS = 2 * PATIENCE_SECONDS + 3.0

logger = logging.getLogger("upshift")


class KeeperGone(Exception):
    """There are no totals any more, and soon no worker: the keeper has ended."""


class Link:
    """Belongs to the worker's event loop. `listen` must run as long as the worker does; it closes the channel."""

    def __init__(self, channel: Channel, configuration: Configuration, engines: Mapping[str, Any]) -> None:
        self._channel = channel
        self._configuration = configuration
        self._statuses = _statuses(engines)
        self._borrowed: dict[int, BorrowedEngine] = {}
        self._apply: Callable[[Settings], Awaitable[None]] | None = None
        self._changing = asyncio.Lock()
        self._changes: set[asyncio.Task[None]] = set()
        self._registry = CollectorRegistry()
        self._totals: list[asyncio.Future[CollectorRegistry]] = []
        self._usage: Mapping[Backend, Usage] = {}
        self._gone = False

    @classmethod
    async def open(cls, end: socket.socket) -> Link:
        """Returns once it is known what to serve and how every engine is: before that, a request could only be refused.
        Raises KeeperGone."""
        channel = await Channel.open(end)
        first = await channel.receive()
        if first is None:
            channel.close()
            raise KeeperGone("the keeper ended before it said anything")
        return cls(channel, configuration_from(first), first["engines"])

    @property
    def settings(self) -> Settings:
        """The configuration in effect."""
        return self._configuration.settings

    def on_settings(self, apply: Callable[[Settings], Awaitable[None]]) -> None:
        """`apply` is called with each further configuration, one after the other."""
        self._apply = apply

    def backends(self, artifact: ModelSettings) -> Sequence[Backend]:
        """The calls to what serves `artifact`: the keeper's engine, or endpoints that somebody else runs."""
        numbers = [number for number, kept in self._configuration.engines.items() if kept == artifact]
        return create_backends(artifact, lambda plan: self._borrow(numbers[0], plan))

    def _borrow(self, number: int, plan: EnginePlan) -> Backend:
        def let_go() -> None:
            if self._borrowed.get(number) is engine:
                del self._borrowed[number]
                self._channel.send({"left": number, "generation": self._configuration.generation})

        engine = BorrowedEngine(plan, self._statuses[number], let_go, wake=lambda: self._channel.send({"wake": number}))
        self._borrowed[number] = engine
        return engine

    def share(self, registry: CollectorRegistry) -> Callable[[], Awaitable[CollectorRegistry]]:
        """`registry` shows this worker's numbers, to be asked for from now on. Returns `total`."""
        self._registry = registry
        return self.total

    async def report_use(self, usage: Mapping[Backend, Usage]) -> None:
        """Tells which engines are used, as `usage` has it from moment to moment, until cancelled: of those that stop
        when nobody uses them."""
        self._usage = usage
        while True:
            await asyncio.sleep(pause_seconds(self._borrowed.values()))
            stops = [number for number, engine in self._borrowed.items() if engine.idle_stop_seconds is not None]
            used = [number for number in stops if self._uses(number)]
            if used:
                self._channel.send({"used": used})

    def _uses(self, number: int) -> bool:
        usage = self._usage.get(self._borrowed[number]) if number in self._borrowed else None
        return usage is not None and usage.used()

    def _rest(self, number: int) -> None:
        """The keeper is going to stop an engine that seems to have nothing to do."""
        may = not self._uses(number)
        if may:
            self._tell(number, going_to_sleep(self._statuses[number]))
        self._channel.send({"rests": number, "may": may})

    def _tell(self, number: int, status: EngineStatus) -> None:
        self._statuses[number] = status
        if number in self._borrowed:
            self._borrowed[number].tell(status)

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
        for engine in self._borrowed.values():
            engine.tell(EngineStatus("", BackendState.FAILED, failure="its keeper has ended"))
        for answer in self._totals:
            if not answer.done():
                answer.set_exception(KeeperGone("the keeper has ended"))

    async def _change(self, configuration: Configuration) -> None:
        async with self._changing:
            self._configuration = configuration
            if self._apply is None:
                return
            try:
                await self._apply(configuration.settings)
            except (ConfigError, StoreFull):
                # The keeper found it usable a moment ago, and will look again: a file is changing just now.
                logger.exception("this worker keeps its configuration")

    def _hear(self, message: dict[str, Any]) -> None:
        for number, status in _statuses(message.get("engines", {})).items():
            self._tell(number, status)
        if "rest" in message:
            self._rest(message["rest"])
        if "configuration" in message:
            task = asyncio.create_task(self._change(configuration_from(message)))
            self._changes.add(task)
            task.add_done_callback(self._changes.discard)
        if message.get("ask") == "numbers":
            self.send_numbers()
        if "total" in message:
            # Answers come in the order of the questions.
            answer = self._totals.pop(0)
            if not answer.done():
                answer.set_result(as_registry(message["total"]))


def _statuses(engines: Mapping[str, Any]) -> dict[int, EngineStatus]:
    return {int(number): status_from(fields) for number, fields in engines.items()}


def status_from(fields: Mapping[str, Any]) -> EngineStatus:
    """An EngineStatus out of the JSON that `dataclasses.asdict` makes of it."""
    return EngineStatus(**{**fields, "state": BackendState(fields["state"])})
