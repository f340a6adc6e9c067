"""Which of the engines launched here are in memory: one that has had nothing to do for long is put to sleep, and two
that do not fit together are never loaded together.

Nobody loses a request by that: an engine goes to sleep once whoever sends it requests has said that none comes any
more. Neighbours: room.py (who may load, who yields), engine.py (`sleep` and `wake`), process.py; routing/demand.py (who
wakes them); the gateway's usage.py and workers/rest.py (what `Use` is made of).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial

from backends.base import BackendState
from backends.borrowed import BorrowedEngine
from backends.claim import free_memory, loaded_claim
from backends.engine import EngineBackend
from backends.fit import NOTHING, Claim
from backends.hardware import Hardware, detect
from backends.room import Occupant, Standing, rule

# How often one looks whether an engine is used, at most.
LOOK_SECONDS = 0.25
# While somebody waits for room: how often one looks at the engines, and how often at the machine if they are as before.
_POLL_SECONDS, _POLLS = 0.05, 20

_IN_MEMORY = (BackendState.READY, BackendState.DRAINING)

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
    going: asyncio.Task[None] | None = None
    leaves: bool = False
    # While it asks whether it may load, and from the answer until it has loaded:
    answer: asyncio.Future[str] | None = None
    claim: Claim | None = None
    told: bool = False
    loads: bool = False

    @property
    def is_gone(self) -> bool:
        return self.leaves and self.engine.state is BackendState.STOPPED

    @property
    def standing(self) -> Standing | None:
        """None where it has no memory, or only asks for it."""
        if self.engine.state is BackendState.STARTING and self.loads:
            return Standing.LOADS
        return Standing.LOADED if self.engine.state in _IN_MEMORY else None

    def occupant(self, now: float) -> Occupant:
        """As room.py sees it."""
        self.look(now)
        yields = self.engine.idle_stop_seconds is not None or self.leaves or self.going is not None
        idle_seconds = 0.0 if self.leaves or self.going is not None else now - self.used_at
        standing = self.standing or Standing.ASKS
        claim = self.claim or NOTHING
        if standing is Standing.LOADED:
            claim = loaded_claim(claim, self.engine.pid)
        return Occupant(self.engine.engine, claim, standing, yields, idle_seconds)

    def look(self, now: float) -> None:
        if self.use.used() or self.engine.state is not BackendState.READY:
            self.used_at = now

    def is_due(self, now: float) -> bool:
        idle_seconds = self.engine.idle_stop_seconds
        return (
            idle_seconds is not None and self.going is None and not self.leaves and now - self.used_at >= idle_seconds
        )


def pause_seconds(engines: Iterable[EngineBackend | BorrowedEngine]) -> float:
    """Until the next look whether `engines` are used."""
    return min([LOOK_SECONDS, *(engine.idle_stop_seconds / 4 for engine in engines if engine.idle_stop_seconds)])


class Residency:
    """All engines of one process. Belongs to its event loop."""

    def __init__(self, machine: Callable[[], Hardware] = detect, clock: Callable[[], float] = time.monotonic) -> None:
        """`machine` looks at the memory there is, in a thread."""
        self._machine = machine
        self._clock = clock
        self._tenants: dict[EngineBackend, _Tenant] = {}
        # Those that ask whether they may load, in their order.
        self._asking: list[_Tenant] = []
        self._watching: asyncio.Task[None] | None = None
        self._reviewing: asyncio.Task[None] | None = None

    def adopt(self, engine: EngineBackend, use: Use) -> None:
        """From now on `engine` is looked after, and loads when there is room for it; it is not started by that."""
        self._tenants[engine] = _Tenant(engine, use, self._clock())
        engine.load_once(partial(self._admit, engine))
        if engine.idle_stop_seconds is not None and self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="idle engines")
            self._watching.add_done_callback(_report_end)

    def dismiss(self, engine: EngineBackend) -> None:
        """It is about to be stopped by its owner. Until it is, it still has its memory."""
        if engine in self._tenants:
            self._tenants[engine].leaves = True

    async def stop(self) -> None:
        """Looks after nobody any more; an engine that is just being put to sleep is killed. For the end, before the
        others are stopped."""
        tasks = [tenant.going for tenant in self._tenants.values()]
        found = [task for task in (*tasks, self._watching, self._reviewing) if task is not None]
        self._tenants.clear()
        for task in found:
            task.cancel()
        await asyncio.gather(*found, return_exceptions=True)

    # -- idle engines --------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(pause_seconds(self._tenants))
            now = self._clock()
            for tenant in self._tenants.values():
                tenant.look(now)
                if tenant.is_due(now):
                    self._put_to_sleep(tenant, "has nothing to do")

    def _put_to_sleep(self, tenant: _Tenant, why: str) -> None:
        if tenant.going is None:
            tenant.going = asyncio.create_task(self._going(tenant, why))

    async def _going(self, tenant: _Tenant, why: str) -> None:
        engine = tenant.engine
        try:
            if not await tenant.use.let_go():
                tenant.used_at = self._clock()
                return
            # From here to the first await inside of `sleep` nobody else runs.
            if engine.state is BackendState.READY and not tenant.leaves:
                logger.info("engine %s %s: it is stopped until somebody needs it", engine.engine, why)
                await engine.sleep()
            tenant.use.resume()
        finally:
            tenant.going = None

    # -- room ----------------------------------------------------------------------------------------------------------

    async def _admit(self, engine: EngineBackend) -> str:
        """Returns when `engine` may load: "", or why it may not."""
        self._forget()
        tenant = self._tenants.get(engine)
        if tenant is None:
            return ""
        tenant.claim, tenant.told = None, False
        tenant.loads = len(self._tenants) == 1
        if tenant.loads:
            return ""
        tenant.answer = asyncio.get_running_loop().create_future()
        self._asking.append(tenant)
        if self._reviewing is None or self._reviewing.done():
            self._reviewing = asyncio.create_task(self._review(), name="engines that ask for room")
            self._reviewing.add_done_callback(_report_failure)
        try:
            return await tenant.answer
        finally:
            if tenant in self._asking:
                self._asking.remove(tenant)

    def _forget(self) -> None:
        self._tenants = {engine: tenant for engine, tenant in self._tenants.items() if not tenant.is_gone}

    async def _review(self) -> None:
        """Answers those that ask, until nobody does."""
        while self._asking:
            hardware = await asyncio.to_thread(self._machine)
            for tenant in [tenant for tenant in self._tenants.values() if tenant.claim is None]:
                tenant.claim = await asyncio.to_thread(tenant.engine.claim, hardware)
            self._carry_out(hardware)
            await self._news()

    def _carry_out(self, hardware: Hardware) -> None:
        now = self._clock()
        self._forget()
        others = [tenant for tenant in self._tenants.values() if tenant.standing is not None]
        # One that began to ask meanwhile is weighed the next time.
        tenants = [tenant for tenant in (*self._asking, *others) if tenant.claim is not None]
        ruling = rule([tenant.occupant(now) for tenant in tenants], free_memory(hardware))
        for index in ruling.start:
            tenants[index].loads = True
            self._answer(tenants[index], "")
        for index, why in ruling.refused.items():
            self._answer(tenants[index], why)
        for index, why in ruling.waiting.items():
            if not tenants[index].told:
                tenants[index].told = True
                logger.info("engine %s waits: %s", tenants[index].engine.engine, why)
                tenants[index].engine.hold_up(f"waits for memory: {why}")
        for index in ruling.sleep:
            self._put_to_sleep(tenants[index], "yields its memory to another")

    def _answer(self, tenant: _Tenant, why: str) -> None:
        self._asking.remove(tenant)
        if tenant.answer is not None and not tenant.answer.done():
            tenant.answer.set_result(why)

    async def _news(self) -> None:
        """Returns when it makes sense to look again: something has happened here, or perhaps elsewhere."""
        before = self._moment()
        for _ in range(_POLLS):
            if not self._asking:
                return
            await asyncio.sleep(_POLL_SECONDS)
            if self._moment() != before:
                return

    def _moment(self) -> list[object]:
        states = [(tenant.engine.state, tenant.going is None) for tenant in self._tenants.values()]
        return [*states, *map(id, self._asking)]


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        logger.critical("engines are not looked after any more", exc_info=task.exception())


def _report_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and task.exception() is not None:
        _report_end(task)
