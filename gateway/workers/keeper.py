"""The process that owns the engines: starts them, tells every worker how they are, adds up everybody's numbers.

It also watches the configuration and hands a new one to the workers. Neighbours: supervisor.py (forks this and hands
over each worker's channel), link.py (a worker's end), kept.py (the engines), tally.py.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector

from backends.residency import Residency, Use
from config.schema import Settings
from gateway.health import Readiness, announce
from gateway.reload import Reloader, Source
from gateway.served import MakeBackends
from gateway.workers.channel import Channel
from gateway.workers.kept import Engine, Engines, stop
from gateway.workers.supervisor import END, HOPELESS
from gateway.workers.tally import Member, Tally

logger = logging.getLogger("upshift")


class Keeper:
    """Lives for one `run` in one event loop."""

    def __init__(
        self,
        source: Source,
        workers: int,
        on_serving: Callable[[], None],
        make_backends: MakeBackends,
    ) -> None:
        """`on_serving` is called once, when `workers` workers accept connections; `make_backends` is
        factory.create_backends."""
        self._workers = workers
        self._on_serving = on_serving
        self._engines = Engines(make_backends)
        self._residency = Residency()
        self._settings = source.loaded.settings
        self._readiness = Readiness(())
        self._reloader = Reloader(source, self._apply)
        self._tally = Tally(_own_registry())
        self._channels: set[Channel] = set()
        self._complete = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: asyncio.Future[int] | None = None
        self._group = asyncio.TaskGroup()

    async def run(self, control: socket.socket) -> int:
        """Keeps the engines until END comes on `control`, then stops them. Returns the exit code: 0, or HOPELESS when
        no model can be loaded. Every other message is a worker's index, with the keeper's end of its channel."""
        loop = asyncio.get_running_loop()
        self._ended = loop.create_future()
        loop.add_signal_handler(signal.SIGHUP, self._reloader.ask)
        try:
            # A task of ours that fails ends the whole group, and so the keeper: half a keeper would be worse.
            async with self._group:
                self._spawn(self._take_workers(control))
                self._spawn(announce(self._readiness))
                await self._apply(self._settings)
                self._spawn(self._reloader.run())
                code = await self._ended
                for task in self._tasks:
                    task.cancel()
        finally:
            await self._residency.stop()
            await stop(self._engines.all)
        return code

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._group.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _end(self, code: int) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(code)

    async def _apply(self, settings: Settings) -> None:
        """Starts what is new in `settings` and hands them to the workers, who let go of what is not there any more."""
        new = self._engines.adopt(settings)
        for engine in new:
            rest = engine.rest
            self._residency.adopt(engine.backend, Use(rest.used, rest.let_go, rest.resume))
        self._settings = settings
        self._readiness.upstreams = tuple(self._engines.upstreams)
        self._configure(self._channels)
        for engine in new:
            self._spawn(self._follow(engine))
            await engine.backend.start()
        self._tidy()

    def _tidy(self) -> None:
        unused = self._engines.pop_unused()
        for engine in unused:
            self._residency.dismiss(engine.backend)
        if unused:
            self._spawn(stop(unused))

    async def _take_workers(self, control: socket.socket) -> None:
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
            self._spawn(self._attend(int(message), await Channel.open(end)))
        self._end(0)

    async def _follow(self, engine: Engine) -> None:
        """Tells everybody how the engine is, from its start to the end of its being kept."""
        while self._engines.keeps(engine):
            for channel in self._channels:
                channel.send({"engines": engine.status})
            if self._engines.needed and self._readiness.hopeless:
                logger.error("no model can be served: stopping")
                self._end(HOPELESS)
            await engine.backend.changed()

    def _configure(self, channels: Iterable[Channel]) -> None:
        message = self._engines.configuration(self._settings)
        for channel in channels:
            self._engines.lend(channel)
            channel.send(message)

    async def _attend(self, index: int, channel: Channel) -> None:
        """One worker from its first to its last message."""
        self._configure([channel])
        self._channels.add(channel)
        member = self._tally.join(index, channel)
        try:
            while (message := await channel.receive()) is not None:
                self._hear(member, message)
        finally:
            self._tally.leave(member)
            self._channels.discard(channel)
            channel.close()
            self._engines.take_back(channel)
            self._tidy()

    def _hear(self, member: Member, message: dict[str, Any]) -> None:
        if "numbers" in message:
            member.answered(message["numbers"])
        elif message.get("ask") == "total":
            self._spawn(self._send_total(member.channel))
        elif "left" in message:
            self._engines.give_up(member.channel, message["left"], message["generation"])
            self._tidy()
        elif "used" in message:
            for engine in filter(None, map(self._engines.get, message["used"])):
                engine.rest.note_use()
        elif "rests" in message or "wake" in message:
            self._hear_of_sleep(member.channel, message)
        elif message.get("say") == "serving":
            member.serving = True
            if not self._complete and self._tally.serving == self._workers:
                self._complete = True
                self._on_serving()

    def _hear_of_sleep(self, channel: Channel, message: dict[str, Any]) -> None:
        engine = self._engines.get(message["rests"] if "rests" in message else message["wake"])
        if engine is None:
            return
        if "wake" in message:
            engine.rest.want()
            engine.backend.wake()
        else:
            engine.rest.hear(channel, may=message["may"])

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
