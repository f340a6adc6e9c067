"""Engines that are put to sleep and woken, over fake engine processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from backends.base import BackendState
from backends.engine import EngineBackend
from backends.errors import BackendLoading
from backends.process import EngineProcess
from backends.residency import Residency, Use
from tests.backends.supervised import LIMIT_SECONDS, TIMING, fake_argv, is_gone, kill, until
from tests.backends.test_engine import _request

IDLE_SECONDS = 0.02

Make = Callable[..., tuple[EngineBackend, EngineProcess]]


class Uses:
    """What a test says of an engine. `calm` is set by each question while it is not used; `asked`: let_go."""

    def __init__(self) -> None:
        self.used = False
        self.may = True
        self.resumed = 0
        self.calm = asyncio.Event()
        self.asked = asyncio.Event()

    def tell(self) -> bool:
        self.calm.set()
        return self.used

    async def let_go(self) -> bool:
        self.asked.set()
        return self.may

    def resume(self) -> None:
        self.resumed += 1

    @property
    def use(self) -> Use:
        return Use(self.tell, self.let_go, self.resume)


@pytest.fixture
async def residency() -> AsyncIterator[Residency]:
    residency = Residency()
    yield residency
    await residency.stop()


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[EngineBackend] = []

    def build(*modes: str, idle_stop_seconds: float | None = IDLE_SECONDS) -> tuple[EngineBackend, EngineProcess]:
        process = EngineProcess("demo", lambda path: fake_argv(path, *modes), timing=TIMING)
        made.append(EngineBackend("gguf", process, idle_stop_seconds))
        return made[-1], process

    yield build
    for backend in made:
        await backend.stop()


async def test_an_engine_that_nobody_uses_is_stopped_until_somebody_wakes_it(make: Make, residency: Residency) -> None:
    backend, process = make()
    uses = Uses()
    residency.adopt(backend, uses.use)
    await backend.start()
    await backend.wait_ready(LIMIT_SECONDS)
    pid = process.pid
    await until(process, BackendState.STOPPED)
    assert pid is not None
    assert is_gone(pid)
    assert (backend.asleep, backend.failure, backend.progress) == (True, "", 0.0)
    with pytest.raises(BackendLoading):
        await backend.send(_request())
    uses.used = True
    for _ in range(3):
        backend.wake()
    assert (backend.state, backend.asleep) == (BackendState.STARTING, True)
    await backend.wait_ready(LIMIT_SECONDS)
    assert (backend.asleep, backend.restarts) == (False, 0)
    response = await backend.send(_request())
    await response.aclose()


async def test_one_that_is_used_or_may_not_go_stays(make: Make, residency: Residency) -> None:
    backend, _ = make()
    uses = Uses()
    uses.used, uses.may = True, False
    residency.adopt(backend, uses.use)
    await backend.start()
    await backend.wait_ready(LIMIT_SECONDS)
    for _ in range(10):
        uses.calm.clear()
        async with asyncio.timeout(LIMIT_SECONDS):
            await uses.calm.wait()
    assert not uses.asked.is_set()
    uses.used = False
    for _ in range(2):
        uses.asked.clear()
        async with asyncio.timeout(LIMIT_SECONDS):
            await uses.asked.wait()
    assert backend.state is BackendState.READY


async def test_without_a_time_it_is_never_stopped(make: Make, residency: Residency) -> None:
    sleepy, process = make()
    steady, _ = make(idle_stop_seconds=None)
    uses = Uses()
    residency.adopt(sleepy, Uses().use)
    residency.adopt(steady, uses.use)
    for backend in (sleepy, steady):
        await backend.start()
        await backend.wait_ready(LIMIT_SECONDS)
    await until(process, BackendState.STOPPED)
    assert (steady.state, uses.asked.is_set()) == (BackendState.READY, False)


async def test_woken_while_it_is_being_stopped_it_starts_after_that(make: Make) -> None:
    backend, process = make()
    await backend.start()
    await backend.wait_ready(LIMIT_SECONDS)
    first = process.pid
    going = asyncio.create_task(backend.sleep())
    await until(process, BackendState.DRAINING)
    assert backend.asleep
    backend.wake()
    backend.wake()
    await going
    assert (backend.state, backend.asleep) == (BackendState.STARTING, True)
    await backend.wait_ready(LIMIT_SECONDS)
    assert process.pid not in (None, first)


async def test_stopped_for_good_it_is_not_woken(make: Make) -> None:
    backend, process = make()
    await backend.start()
    await backend.wait_ready(LIMIT_SECONDS)
    going = asyncio.create_task(backend.sleep())
    await until(process, BackendState.DRAINING)
    backend.wake()
    await backend.stop()
    await going
    backend.wake()
    assert (backend.state, backend.asleep) == (BackendState.STOPPED, False)


async def test_an_awake_engine_does_not_notice_a_wake(make: Make) -> None:
    backend, process = make()
    backend.wake()
    assert backend.state is BackendState.STOPPED
    await backend.start()
    await backend.wait_ready(LIMIT_SECONDS)
    pid = process.pid
    backend.wake()
    assert (backend.state, process.pid) == (BackendState.READY, pid)


async def test_one_that_crashes_after_it_was_woken_is_not_asleep(make: Make) -> None:
    backend, process = make()
    await backend.start()
    await backend.wait_ready(LIMIT_SECONDS)
    await backend.sleep()
    backend.wake()
    await backend.wait_ready(LIMIT_SECONDS)
    kill(process)
    await until(process, BackendState.FAILED)
    assert not backend.asleep
    await until(process, BackendState.STARTING)
    assert not backend.asleep


async def test_stopping_to_look_ends_what_is_under_way(make: Make) -> None:
    backend, process = make("stubborn")
    residency = Residency()
    residency.adopt(backend, Uses().use)
    await backend.start()
    await backend.wait_ready(LIMIT_SECONDS)
    await until(process, BackendState.DRAINING)
    async with asyncio.timeout(TIMING.grace_seconds):
        await residency.stop()
        await backend.stop()
    assert backend.state is BackendState.STOPPED
