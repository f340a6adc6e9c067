"""Engines that sleep without ending, as vLLM's sleep mode has it, over a fake one with its endpoints."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from backends.base import BackendState
from backends.engine import EngineBackend
from backends.process import EngineProcess
from tests.backends.supervised import LIMIT_SECONDS, TIMING, ask, fake_argv, is_gone, kill, until
from tests.backends.test_engine import _request

Make = Callable[..., tuple[EngineBackend, EngineProcess]]


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[EngineBackend] = []

    def build(*modes: str) -> tuple[EngineBackend, EngineProcess]:
        process = EngineProcess("demo", lambda path: fake_argv(path, *modes), timing=TIMING, dozes=True)
        made.append(EngineBackend("vllm", process, 600))
        return made[-1], process

    async with asyncio.timeout(3 * LIMIT_SECONDS):
        yield build
        for backend in made:
            await backend.stop()


async def asleep(backend: EngineBackend) -> None:
    await backend.start()
    await backend.wait_ready(LIMIT_SECONDS)
    await backend.sleep()
    assert (backend.state, backend.asleep) == (BackendState.STOPPED, True)


async def test_it_keeps_its_process_and_answers_again_once_woken(make: Make) -> None:
    backend, process = make()
    await asleep(backend)
    pid = process.pid
    assert pid is not None
    assert await ask(process, "GET", "/health") == 200
    backend.wake()
    backend.wake()
    assert (backend.state, backend.asleep) == (BackendState.STARTING, True)
    await backend.wait_ready(LIMIT_SECONDS)
    assert (process.pid, backend.asleep, backend.restarts) == (pid, False, 0)
    response = await backend.send(_request())
    response.close()
    await backend.sleep()
    backend.wake()
    await backend.wait_ready(LIMIT_SECONDS)
    assert process.pid == pid


async def test_woken_while_it_falls_asleep_it_wakes_after_that(make: Make) -> None:
    backend, process = make()
    await backend.start()
    await backend.wait_ready(LIMIT_SECONDS)
    pid = process.pid
    going = asyncio.create_task(backend.sleep())
    await until(process, BackendState.DRAINING)
    backend.wake()
    await going
    await backend.wait_ready(LIMIT_SECONDS)
    assert process.pid == pid


@pytest.mark.parametrize("moment", ["asleep", "falling asleep", "waking"])
async def test_stopped_for_good_nothing_is_left(make: Make, moment: str) -> None:
    backend, process = make()
    await backend.start()
    await backend.wait_ready(LIMIT_SECONDS)
    pid = process.pid
    going = asyncio.create_task(backend.sleep())
    await until(process, BackendState.DRAINING if moment == "falling asleep" else BackendState.STOPPED)
    if moment == "waking":
        backend.wake()
    await backend.stop()
    await going
    assert pid is not None
    assert is_gone(pid)
    assert (backend.state, backend.asleep, process.folder.exists()) == (BackendState.STOPPED, False, False)


async def test_one_that_cannot_sleep_is_stopped(make: Make) -> None:
    backend, process = make("insomniac")
    await asleep(backend)
    assert process.pid is None
    backend.wake()
    await backend.wait_ready(LIMIT_SECONDS)


async def test_one_that_does_not_wake_up_is_started_anew(make: Make) -> None:
    backend, process = make("stays")
    await asleep(backend)
    pid = process.pid
    backend.wake()
    await until(process, BackendState.FAILED)
    assert (backend.failure, backend.asleep) == ("it did not wake up", False)
    await backend.wait_ready(LIMIT_SECONDS)
    assert process.pid not in (None, pid)


async def test_one_that_is_killed_in_its_sleep_is_started_anew_when_it_is_needed(make: Make) -> None:
    backend, process = make()
    await asleep(backend)
    pid = process.pid
    kill(process)
    while process.pid is not None:  # noqa: ASYNC110 - the state stays as it is
        await asyncio.sleep(0.01)
    assert (backend.state, backend.asleep) == (BackendState.STOPPED, True)
    backend.wake()
    await backend.wait_ready(LIMIT_SECONDS)
    assert process.pid not in (None, pid)


async def test_who_wakes_it_waits_for_room(make: Make) -> None:
    backend, process = make()
    await asleep(backend)
    room = asyncio.Event()

    async def admitted() -> str:
        await room.wait()
        return ""

    backend.load_once(admitted)
    backend.wake()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await until(process, BackendState.READY)
    room.set()
    await backend.wait_ready(LIMIT_SECONDS)
