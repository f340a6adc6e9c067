"""The process that owns the engines: starts them, tells every worker how they are, adds up everybody's numbers.

Neighbours: supervisor.py (forks this and hands over each worker's channel), link.py (a worker's end), tally.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import asdict
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector

from backends.engine import EngineBackend
from gateway.health import Readiness, announce
from gateway.workers.channel import Channel
from gateway.workers.supervisor import END, HOPELESS
from gateway.workers.tally import Member, Tally
from routing.upstream import Upstream

logger = logging.getLogger("upshift")


class Keeper:
    """Lives for one `run` in one event loop."""

    def __init__(
        self,
        engines: Mapping[str, EngineBackend],
        workers: int,
        on_serving: Callable[[], None],
        *,
        needed: bool = True,
    ) -> None:
        """`engines` by their names, stopped; `on_serving` is called once, when `workers` workers accept connections.
        Where they are not `needed`, because there are other models, the gateway goes on without any of them."""
        self._needed = needed
        self._engines = engines
        self._workers = workers
        self._on_serving = on_serving
        self._readiness = Readiness([(name.rpartition("/")[0], Upstream(engine)) for name, engine in engines.items()])
        self._tally = Tally(_own_registry())
        self._channels: set[Channel] = set()
        self._complete = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, control: socket.socket) -> int:
        """Keeps the engines until END comes on `control`, then stops them. Returns the exit code: 0, or HOPELESS when
        no model can be loaded. Every other message is a worker's index, with the keeper's end of its channel."""
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        try:
            # A task of ours that fails ends the whole group, and so the keeper: half a keeper would be worse.
            async with asyncio.TaskGroup() as group:
                self._spawn(group, self._take_workers(control, ended, group))
                self._spawn(group, announce(self._readiness))
                for name, engine in self._engines.items():
                    self._spawn(group, self._follow(name, engine, ended))
                    await engine.start()
                code = await ended
                for task in self._tasks:
                    task.cancel()
        finally:
            await asyncio.gather(*(engine.stop() for engine in self._engines.values()), return_exceptions=True)
        return code

    def _spawn(self, group: asyncio.TaskGroup, work: Coroutine[Any, Any, None]) -> None:
        task = group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take_workers(self, control: socket.socket, ended: asyncio.Future[int], group: asyncio.TaskGroup) -> None:
        control.setblocking(False)
        while True:
            await _readable(control)
            message, descriptors, _, _ = socket.recv_fds(control, 64, 1)
            if not message:
                # The supervisor was killed, and this process will be in a moment. An engine that was told to stop by
                # then would leave its folder to a keeper that is gone; one that only loses its keeper cleans up itself.
                return
            if message == END:
                break
            end = socket.socket(fileno=descriptors[0])
            end.setblocking(False)
            self._spawn(group, self._attend(int(message), await Channel.open(end), group))
        if not ended.done():
            ended.set_result(0)

    async def _follow(self, name: str, engine: EngineBackend, ended: asyncio.Future[int]) -> None:
        while True:
            self._tell({name: engine})
            if self._needed and self._readiness.hopeless and not ended.done():
                logger.error("no model can be served: stopping")
                ended.set_result(HOPELESS)
            await engine.changed()

    def _tell(self, engines: Mapping[str, EngineBackend], channel: Channel | None = None) -> None:
        message = {"engines": {name: asdict(engine.status) for name, engine in engines.items()}}
        for each in self._channels if channel is None else (channel,):
            each.send(message)

    async def _attend(self, index: int, channel: Channel, group: asyncio.TaskGroup) -> None:
        """One worker from its first to its last message."""
        self._tell(self._engines, channel)
        self._channels.add(channel)
        member = self._tally.join(index, channel)
        try:
            while (message := await channel.receive()) is not None:
                self._hear(member, message, group)
        finally:
            self._tally.leave(member)
            self._channels.discard(channel)
            channel.close()

    def _hear(self, member: Member, message: dict[str, Any], group: asyncio.TaskGroup) -> None:
        if "numbers" in message:
            member.answered(message["numbers"])
        elif message.get("ask") == "total":
            self._spawn(group, self._send_total(member.channel))
        elif message.get("say") == "serving":
            member.serving = True
            if not self._complete and self._tally.serving == self._workers:
                self._complete = True
                self._on_serving()

    async def _send_total(self, channel: Channel) -> None:
        channel.send({"total": await self._tally.total()})


def _own_registry() -> CollectorRegistry:
    """Process metrics of the keeper and of its supervisor; with the workers' they make the whole gateway's."""
    registry = CollectorRegistry(auto_describe=False)
    ProcessCollector(registry=registry)
    ProcessCollector(registry=registry, pid=os.getppid)
    return registry


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock.fileno())
