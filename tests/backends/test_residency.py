"""Engines that are put to sleep and woken, over fake engine processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from backends.base import BackendState
from backends.engine import EngineBackend
from backends.errors import BackendLoading
from backends.fit import GIB, MEMORY, Claim
from backends.hardware import Hardware
from backends.process import EngineProcess
from backends.residency import Residency, Use
from tests.backends.supervised import LIMIT_SECONDS, TIMING, ask, fake_argv, is_gone, kill, until
from tests.backends.test_engine import _request

IDLE_SECONDS = 0.02
QUIET = Hardware(4, 4, 64 * GIB, 32 * GIB, ())

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

    def build(
        *modes: str, idle_stop_seconds: float | None = IDLE_SECONDS, gib: float = 0, name: str = "demo"
    ) -> tuple[EngineBackend, EngineProcess]:
        process = EngineProcess(name, lambda path: fake_argv(path, *modes), timing=TIMING)
        claim = Claim({MEMORY: int(gib * GIB)})
        made.append(EngineBackend("gguf", process, idle_stop_seconds, lambda _: claim))
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
    response.close()


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


class Machine:
    """Memory that is taken by the engines that are READY."""

    def __init__(self, gib: float) -> None:
        self.total_bytes = int(gib * GIB)
        self.engines: list[EngineBackend] = []

    def __call__(self) -> Hardware:
        claims = [engine.claim(QUIET) for engine in self.engines if engine.state is BackendState.READY]
        free_bytes = self.total_bytes - sum(claim.sizes[MEMORY] for claim in claims)
        return replace(QUIET, available_ram_bytes=free_bytes)


class House:
    """A residency on such a machine, and how many engines loaded at the same time."""

    def __init__(self, gib: float) -> None:
        self.machine = Machine(gib)
        self.residency = Residency(self.machine)
        self.uses: dict[EngineBackend, Uses] = {}

    def adopt(self, *engines: EngineBackend) -> None:
        for engine in engines:
            self.machine.engines.append(engine)
            self.uses[engine] = Uses()
            self.residency.adopt(engine, self.uses[engine].use)


@asynccontextmanager
async def house(gib: float) -> AsyncIterator[House]:
    built = House(gib)
    try:
        async with asyncio.timeout(2 * LIMIT_SECONDS):
            yield built
    finally:
        await built.residency.stop()


async def test_two_that_fit_load_at_once(make: Make) -> None:
    async with house(8) as built:
        engines = [make("loading", idle_stop_seconds=None, gib=4, name=name) for name in "ab"]
        built.adopt(*(engine for engine, _ in engines))
        for engine, _ in engines:
            await engine.start()
        await asyncio.gather(*(progressed(process) for _, process in engines))


async def test_where_both_do_not_fit_the_second_is_refused_beside_one_that_stays(make: Make) -> None:
    async with house(7) as built:
        (first, loads), (second, asks) = [
            make("loading", idle_stop_seconds=None, gib=4, name=name) for name in ("first/gguf", "second/vllm")
        ]
        built.adopt(first, second)
        for engine in (first, second):
            await engine.start()
        await progressed(loads)
        assert (second.state, asks.pid) == (BackendState.STARTING, None), "it waits until the first one has loaded"
        await ask(loads, "POST", "/loaded")
        await until(asks, BackendState.FAILED)
        assert (first.state, second.gave_up, asks.pid) == (BackendState.READY, False, None)
        assert (first.refused, second.refused, second.status.refused) == (False, True, True)
        assert second.failure.startswith("it needs 4.0 GiB, and 3.0 GiB is free beside first/gguf (4.0 GiB)")


async def test_an_idle_engine_yields_to_one_that_is_needed_and_comes_back_when_that_is_idle(make: Make) -> None:
    async with house(7) as built:
        (first, _), (second, _) = [make(idle_stop_seconds=600, gib=4, name=name) for name in "ab"]
        built.adopt(first, second)
        await first.start()
        await first.wait_ready(LIMIT_SECONDS)
        await second.start()
        await second.wait_ready(LIMIT_SECONDS)
        assert (first.state, first.asleep) == (BackendState.STOPPED, True)
        first.wake()
        await first.wait_ready(LIMIT_SECONDS)
        assert (second.state, second.asleep) == (BackendState.STOPPED, True)


async def test_one_that_is_in_use_does_not_yield_until_it_is_done(make: Make) -> None:
    async with house(7) as built:
        (first, busy), (second, asks) = [make(idle_stop_seconds=600, gib=4, name=name) for name in "ab"]
        built.adopt(first, second)
        uses = built.uses[first]
        uses.used = True
        await first.start()
        await first.wait_ready(LIMIT_SECONDS)
        pid = busy.pid
        await second.start()
        for _ in range(5):
            uses.calm.clear()
            await uses.calm.wait()
        assert (asks.state, asks.pid, busy.pid) == (BackendState.STARTING, None, pid)
        assert second.failure == "waits for memory: it needs 4.0 GiB, and 3.0 GiB is free"
        uses.used = False
        await second.wait_ready(LIMIT_SECONDS)
        assert (first.asleep, second.failure) == (True, "")


async def test_who_asks_for_room_can_be_stopped(make: Make) -> None:
    async with house(7) as built:
        (first, _), (second, asks) = [make(idle_stop_seconds=600, gib=4, name=name) for name in "ab"]
        built.adopt(first, second)
        built.uses[first].used = True
        await first.start()
        await first.wait_ready(LIMIT_SECONDS)
        await second.start()
        for _ in range(3):
            built.uses[first].calm.clear()
            await built.uses[first].calm.wait()
        await second.stop()
        assert (second.state, asks.pid) == (BackendState.STOPPED, None)


async def test_one_that_is_being_stopped_for_good_is_waited_for(make: Make) -> None:
    async with house(7) as built:
        (leaves, _), (comes, asks) = [make(idle_stop_seconds=None, gib=4, name=name) for name in "ab"]
        built.adopt(leaves, comes)
        await leaves.start()
        await leaves.wait_ready(LIMIT_SECONDS)
        built.residency.dismiss(leaves)
        await comes.start()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await until(asks, BackendState.READY)
        assert asks.pid is None
        await leaves.stop()
        await comes.wait_ready(LIMIT_SECONDS)


async def progressed(process: EngineProcess) -> None:
    """Returns when it is loading."""
    while process.progress != 0.42:
        await process.changed()
