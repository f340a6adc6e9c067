"""One worker: the gateway's application over inherited sockets, engines borrowed from the keeper.

Neighbours: supervisor.py (forks this), link.py (the keeper), gateway/server.py (what serves).
"""

from __future__ import annotations

import asyncio
import logging
import math
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import uvloop

from config.schema import Settings
from gateway.app import create_app
from gateway.log import access_log
from gateway.ratelimit_store import LimitStore
from gateway.server import GatewayServer, certificates_of
from gateway.spool import Spool
from gateway.workers.lines import shared_writer
from gateway.workers.link import Link
from gateway.workers.supervisor import CANNOT_START

logger = logging.getLogger("upshift")


class WorkerServer(GatewayServer):
    """Obeys the supervisor: SIGTERM begins the drain, however often it comes (a service manager may send one to every
    process of the group), SIGQUIT ends it."""

    def handlers(self) -> Mapping[signal.Signals, Callable[[], object]]:
        """What a signal does while this serves."""
        return {signal.SIGTERM: self.drain, signal.SIGQUIT: self._stop_now, signal.SIGHUP: self.read_again}

    def keep_out(self, sockets: list[socket.socket]) -> None:
        """Done by the supervisor when it ends all of them. When this worker is ended alone, its successor takes over
        the sockets, and what connects meanwhile waits for it."""

    def _stop_now(self) -> None:
        self.drain()
        self.hurry()


@dataclass(frozen=True, slots=True)
class Place:
    """Which of how many workers this is, and what they have in common."""

    index: int
    workers: int
    limits: LimitStore


def run_worker(
    place: Place, listeners: Sequence[socket.socket], channel: socket.socket, admin: Sequence[socket.socket] = ()
) -> int:
    """Serves clients on `listeners`, operators on `admin`, until SIGTERM, as one of several. Returns the process's exit
    code: 0 after a drain, CANNOT_START when it never served, otherwise 1."""
    served, lines = False, Spool(shared_writer(sys.stdout.fileno()))

    async def main() -> int:
        async with asyncio.TaskGroup() as group:
            link = await Link.open(channel)
            tasks = [group.create_task(link.listen())]
            mine = _share_of(link.settings, place.workers)
            app = create_app(
                mine,
                make_backends=link.backends,
                access_log=access_log(mine.log.format, sys.stdout, lines),
                limits=place.limits,
                worker=place.index,
                workers=place.workers,
                share=link.share,
            )

            link.on_settings(lambda changed: app.gateway.apply(_share_of(changed, place.workers)))

            tasks.append(group.create_task(link.report_use(app.gateway.usage)))

            def on_listening() -> None:
                nonlocal served
                served = True
                link.serving()

            server = WorkerServer(mine, app, on_listening, certificates_of(mine), admin=admin)
            await server.serve(sockets=list(listeners))
            link.send_numbers()
            for task in tasks:
                task.cancel()
        return 1 if server.force_exit else 0

    try:
        with lines, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main())
    except (Exception, SystemExit):  # SystemExit is how uvicorn says that it cannot start
        logger.critical("a worker failed", exc_info=True)
        return 1 if served else CANNOT_START


def _share_of(settings: Settings, workers: int) -> Settings:
    """The same settings with this worker's share of what is limited per gateway and counted per process."""
    most = settings.server.max_connections_per_address
    shares = {
        "max_connections": math.ceil(settings.server.max_connections / workers),
        "max_bodies_bytes": math.ceil(settings.server.max_bodies_bytes / workers),
        "max_connections_per_address": None if most is None else math.ceil(most / workers),
    }
    server = settings.server.model_copy(update=shares)
    waiting = math.ceil(settings.routing.queue.max_waiting / workers)
    queue = settings.routing.queue.model_copy(update={"max_waiting": waiting})
    routing = settings.routing.model_copy(update={"queue": queue})
    return settings.model_copy(update={"server": server, "routing": routing})
