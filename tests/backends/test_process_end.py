"""Ending engines: gracefully, by force, with everything they started, and when the gateway itself is killed."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from backends.base import BackendState
from backends.errors import EngineStartFailed
from backends.kinds import Timing
from backends.process import EngineProcess
from tests.backends.supervised import (
    LIMIT_SECONDS,
    Make,
    Pauses,
    ask,
    end_of,
    is_gone,
    kill,
    until,
)

pytestmark = [
    pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"]),
    pytest.mark.usefixtures("nothing_is_left_open"),
]


def _line(process: EngineProcess, caplog: pytest.LogCaptureFixture, prefix: str) -> str:
    """The rest of the first logged line that begins so; the engine prints it before it is ready."""
    lines = [record.getMessage().removeprefix(f"{process.name}: ") for record in caplog.records]
    return next(line.removeprefix(prefix) for line in lines if line.startswith(prefix))


async def test_stop_ends_the_wait_for_a_restart(make: Make) -> None:
    pauses = Pauses()
    process = make(sleep=pauses)
    await process.start()
    await process.wait_ready(LIMIT_SECONDS)
    kill(process)
    async with asyncio.timeout(LIMIT_SECONDS):
        await pauses.begun.get()
        await process.stop()
    assert process.state is BackendState.STOPPED


async def test_stop_while_loading_and_at_once_after_start(make: Make) -> None:
    process = make("loading")
    await process.start()
    async with asyncio.timeout(LIMIT_SECONDS):
        await process.stop()
        await process.start()
        while process.progress != 0.42:
            await process.changed()
        await process.stop()
    assert process.state is BackendState.STOPPED


async def test_model_that_finishes_loading_during_a_stop_changes_nothing(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    process = make("loading", "stubborn", timing=Timing(grace_seconds=0.2, probe_interval_seconds=0.001))
    await process.start()
    async with asyncio.timeout(LIMIT_SECONDS):
        while process.progress != 0.42:
            await process.changed()
        stopping = asyncio.create_task(process.stop())
        await until(process, BackendState.DRAINING)
        assert await ask(process, "POST", "/loaded") == 200
        await stopping
    assert process.state is BackendState.STOPPED
    assert [record for record in caplog.records if record.name == "asyncio"] == []


async def test_start_during_a_stop_comes_after_it(make: Make) -> None:
    process = make()
    await process.start()
    await process.wait_ready(LIMIT_SECONDS)
    first = process.pid
    stopping = asyncio.create_task(process.stop())
    await until(process, BackendState.DRAINING)
    await process.start()
    await process.wait_ready(LIMIT_SECONDS)
    await stopping
    assert process.state is BackendState.READY
    assert process.pid != first


async def test_waiting_for_a_stopped_engine_fails_at_once(make: Make) -> None:
    process = make()
    with pytest.raises(EngineStartFailed, match="stopped"):
        await process.wait_ready(LIMIT_SECONDS)


async def test_all_callers_of_stop_wait_for_the_end(make: Make) -> None:
    process = make()
    await process.start()
    await process.wait_ready(LIMIT_SECONDS)
    pid = process.pid
    assert pid is not None
    stops = [asyncio.create_task(process.stop()) for _ in range(3)]
    await asyncio.wait(stops, return_when=asyncio.FIRST_COMPLETED)
    assert is_gone(pid)
    await asyncio.gather(*stops)
    assert process.state is BackendState.STOPPED


async def test_engine_that_ignores_sigterm_is_killed_after_the_grace(make: Make) -> None:
    process = make("stubborn", timing=Timing(grace_seconds=0.05, probe_interval_seconds=0.005))
    await process.start()
    await process.wait_ready(LIMIT_SECONDS)
    pid = process.pid
    assert pid is not None
    async with asyncio.timeout(LIMIT_SECONDS):
        await process.stop()
    assert is_gone(pid)


async def test_an_end_that_takes_its_time_is_announced(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "backends.child")
    process = make("stubborn", timing=Timing(grace_seconds=1.5, probe_interval_seconds=0.005))
    await process.start()
    await process.wait_ready(30)
    await process.stop()
    told = f"engine {process.name} is ending and has 1.5 s for it"
    assert [record.getMessage() for record in caplog.records].count(told) == 1


async def test_suspended_engine_is_killed_after_the_grace(make: Make) -> None:
    process = make(timing=Timing(grace_seconds=0.05, probe_interval_seconds=0.005))
    await process.start()
    await process.wait_ready(LIMIT_SECONDS)
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(LIMIT_SECONDS):
        await process.stop()
    assert is_gone(pid)


async def test_cancelled_stop_kills_at_once(make: Make) -> None:
    process = make("stubborn", timing=Timing(grace_seconds=3600, probe_interval_seconds=0.005))
    await process.start()
    await process.wait_ready(LIMIT_SECONDS)
    pid = process.pid
    assert pid is not None
    stopping = asyncio.create_task(process.stop())
    await until(process, BackendState.DRAINING)
    stopping.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stopping
    async with asyncio.timeout(LIMIT_SECONDS):
        await process.stop()
    assert is_gone(pid)
    assert process.state is BackendState.STOPPED


@pytest.mark.parametrize("how", ["stop", "crash"])
async def test_nothing_of_the_group_outlives_the_engine(make: Make, caplog: pytest.LogCaptureFixture, how: str) -> None:
    caplog.set_level(logging.DEBUG, "backends.output")
    process = make("child", sleep=Pauses())
    await process.start()
    await process.wait_ready(LIMIT_SECONDS)
    grandchild = int(_line(process, caplog, "child "))
    if how == "stop":
        await process.stop()
    else:
        # The grandchild holds the output open; the engine's end must be noticed all the same.
        kill(process)
        await until(process, BackendState.FAILED)
    await end_of(grandchild)


PARENT = """
import asyncio, sys
from backends.process import EngineProcess
from tests.backends.supervised import TIMING, fake_argv

async def main():
    engines = [EngineProcess("demo", fake_argv, timing=TIMING) for _ in range(2)]
    for engine in engines:
        await engine.start()
    for engine in engines:
        await engine.wait_ready(20)
        print(engine.socket_path, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_engines_end_with_a_parent_that_was_killed() -> None:
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", PARENT, stdout=asyncio.subprocess.PIPE)
    assert parent.stdout is not None
    connections = []
    async with asyncio.timeout(LIMIT_SECONDS):
        paths = [Path((await parent.stdout.readline()).decode().strip()) for _ in range(2)]
        connections += [await asyncio.open_unix_connection(path) for path in paths]
        parent.kill()
        await parent.wait()
        for reader, writer in connections:
            # The end of the connection is the end of the engine; a reset where it had not accepted it yet.
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
            with suppress(ConnectionResetError):
                await writer.wait_closed()
    for path in paths:
        path.unlink(missing_ok=True)
        path.parent.rmdir()
