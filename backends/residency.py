"""Which of the engines launched here are in memory: one that has had nothing to do for long is put to sleep.

Nobody loses a request by that: an engine goes to sleep once whoever sends it requests has said that none comes any
more. Neighbours: engine.py (`sleep` and `wake`), process.py; routing/demand.py (who wakes them); the gateway's usage.py
and workers/rest.py (what `Use` is made of).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from backends.base import BackendState
from backends.borrowed import BorrowedEngine
from backends.engine import EngineBackend

# How often one looks whether an engine is used, at most.
LOOK_SECONDS = 0.25

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Use:
    """What is known of an engine by those who send requests to it. `used` tells whether it had any, or somebody waits
    for it, since it was last asked. `let_go` gives True when it has none and, until it has been READY again, gets none;
    `resume` takes that back."""

    used: Callable[[], bool]
    let_go: Callable[[], Awaitable[bool]]
    resume: Callable[[], None]


@dataclass(slots=True, eq=False)
class _Tenant:
    engine: EngineBackend
    use: Use
    used_at: float
    going: asyncio.Task[None] | None = field(default=None)

    def look(self, now: float) -> None:
        if self.use.used() or self.engine.state is not BackendState.READY:
            self.used_at = now

    def is_due(self, now: float) -> bool:
        idle_seconds = self.engine.idle_stop_seconds
        return idle_seconds is not None and self.going is None and now - self.used_at >= idle_seconds


def pause_seconds(engines: Iterable[EngineBackend | BorrowedEngine]) -> float:
    """Until the next look whether `engines` are used."""
    return min([LOOK_SECONDS, *(engine.idle_stop_seconds / 4 for engine in engines if engine.idle_stop_seconds)])


class Residency:
    """All engines of one process. Belongs to its event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._tenants: dict[EngineBackend, _Tenant] = {}
        self._watching: asyncio.Task[None] | None = None

    def adopt(self, engine: EngineBackend, use: Use) -> None:
        """From now on `engine` is looked after; it is not started by that."""
        self._tenants[engine] = _Tenant(engine, use, self._clock())
        if engine.idle_stop_seconds is not None and self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="idle engines")
            self._watching.add_done_callback(_report_end)

    def dismiss(self, engine: EngineBackend) -> None:
        """It is somebody else's affair, who is going to stop it."""
        self._tenants.pop(engine, None)

    async def stop(self) -> None:
        """Looks after nobody any more; an engine that is just being put to sleep is killed. For the end, before the
        others are stopped."""
        tasks = [tenant.going for tenant in self._tenants.values() if tenant.going is not None]
        self._tenants.clear()
        if self._watching is not None:
            tasks.append(self._watching)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(pause_seconds(self._tenants))
            now = self._clock()
            for tenant in list(self._tenants.values()):
                tenant.look(now)
                if tenant.is_due(now):
                    tenant.going = asyncio.create_task(self._put_to_sleep(tenant))

    async def _put_to_sleep(self, tenant: _Tenant) -> None:
        engine = tenant.engine
        try:
            if not await tenant.use.let_go():
                tenant.used_at = self._clock()
                return
            # From here to the first await inside of `sleep` nobody else runs.
            if engine.state is BackendState.READY and engine in self._tenants:
                logger.info("engine %s has nothing to do: it is stopped until somebody needs it", engine.engine)
                await engine.sleep()
            tenant.use.resume()
        finally:
            tenant.going = None


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        logger.critical("idle engines are not stopped any more", exc_info=task.exception())
