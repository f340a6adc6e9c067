"""Serves a configuration in as many processes as it asks for. What all of them share is made here, before the fork.

Neighbours: cli/serve.py (the caller), gateway/server.py (one process), supervisor.py (more than one).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import uvloop

from backends.factory import create_backends
from backends.hardware import detect_host
from gateway import log, server
from gateway.bind import bind_each
from gateway.ratelimit_store import LimitStore
from gateway.reload import Source
from gateway.workers.keeper import Keeper
from gateway.workers.supervisor import Supervisor
from gateway.workers.worker import Place, run_worker


def serve(source: Source) -> int:
    """Serves until SIGTERM or SIGINT; returns the process's exit code as `server.serve` does. Raises ListenError before
    anything is started."""
    workers = source.loaded.settings.server.workers
    if workers == "auto":
        workers = detect_host().usable_cores
    return server.serve(source) if workers == 1 else _serve_with(source, workers)


def _serve_with(source: Source, workers: int) -> int:
    settings = source.loaded.settings
    server.certificates_of(settings)  # each worker reads them for itself; here it can still be said on the terminal
    listeners = bind_each(settings.server.host, settings.server.port, workers)
    port = listeners[0][0].getsockname()[1]
    admin: list[list[socket.socket]] = [[] for _ in range(workers)]
    if settings.admin is not None:
        admin = bind_each(settings.admin.host, settings.admin.port, workers, "admin.port")
    operators = admin[0][0].getsockname()[1] if settings.admin is not None else 0
    log.configure(settings.log.format)
    server.raise_file_limit()
    limits = LimitStore(workers=workers)

    def keep(control: socket.socket) -> int:
        keeper = Keeper(source, workers, lambda: server.announce(settings, port, operators, workers), create_backends)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(keeper.run(control))

    def work(index: int, mine: Sequence[socket.socket], channel: socket.socket) -> int:
        clients = len(listeners[index])
        return run_worker(Place(index, workers, limits), mine[:clients], channel, mine[clients:])

    supervisor = Supervisor(
        listeners,
        admin,
        keep=keep,
        work=work,
        lost=limits.forget_worker,
        drain_seconds=settings.server.drain_seconds,
        drain_delay_seconds=settings.server.drain_delay_seconds,
    )
    return supervisor.run()
