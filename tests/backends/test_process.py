"""Starting, failing and restarting, with real processes (fake_engine.py), on both event loops: the gateway runs on
uvloop, other programs on asyncio's own. How they end is in test_process_end.py."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import stat
from pathlib import Path

import pytest

from backends.base import BackendState
from backends.errors import BackendTimeout, EngineStartFailed
from backends.process import EngineProcess
from tests.backends.supervised import (
    LIMIT_SECONDS,
    TIMING,
    Clock,
    Make,
    Pauses,
    ask,
    fake_argv,
    is_gone,
    kill,
    until,
)

pytestmark = [
    pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"]),
    pytest.mark.usefixtures("nothing_is_left_open"),
]


async def test_engine_becomes_ready_and_ends_without_a_trace(make: Make) -> None:
    process = make()
    assert (process.state, process.pid) == (BackendState.STOPPED, None)
    await process.start()
    assert process.state is BackendState.STARTING, "start returns at once"
    await process.wait_ready(LIMIT_SECONDS)
    pid = process.pid
    assert pid is not None
    assert os.getpgid(pid) == pid, "a group of its own"
    assert os.getsid(pid) == os.getsid(0), "in our session: docs/decisions/019"
    assert stat.S_IMODE(process.folder.stat().st_mode) == 0o700
    assert (process.progress, process.failure, process.restarts) == (1.0, "", 0)
    assert await ask(process, "GET", "/health") == 200
    await process.stop()
    assert (process.state, process.pid) == (BackendState.STOPPED, None)
    assert is_gone(pid)
    assert not process.folder.exists()


async def test_starting_twice_starts_one(make: Make) -> None:
    process = make()
    await asyncio.gather(process.start(), process.start())
    await process.wait_ready(LIMIT_SECONDS)
    pid = process.pid
    await process.start()
    assert (process.pid, process.restarts) == (pid, 0)


async def test_a_stopped_engine_can_be_started_again(make: Make) -> None:
    process = make()
    for _ in range(2):
        await process.start()
        await process.wait_ready(LIMIT_SECONDS)
        await process.stop()
    assert process.state is BackendState.STOPPED


async def test_progress_of_loading_is_shown(make: Make) -> None:
    process = make("loading")
    await process.start()
    async with asyncio.timeout(LIMIT_SECONDS):
        while process.progress != 0.42:
            await process.changed()
    assert process.state is BackendState.STARTING
    with pytest.raises(BackendTimeout, match=r"not ready within 0.01 s"):
        await process.wait_ready(0.01)
    assert await ask(process, "POST", "/loaded") == 200
    await process.wait_ready(LIMIT_SECONDS)
    assert process.progress == 1.0


@pytest.mark.parametrize("exit_code", [1, 2])
async def test_model_that_does_not_load_fails_once_with_its_cause(make: Make, exit_code: int) -> None:
    pauses = Pauses()
    process = make("print=llama_model_load: error loading model", f"fail={exit_code}", sleep=pauses)
    await process.start()
    with pytest.raises(EngineStartFailed, match=r"^the file is no GGUF file$") as caught:
        await process.wait_ready(LIMIT_SECONDS)
    assert caught.value.backend == "demo"
    assert (process.state, process.failure) == (BackendState.FAILED, "the file is no GGUF file")
    assert process.gave_up
    assert (process.restarts, pauses.asked) == (0, [])


async def test_first_start_ended_by_a_signal_is_tried_three_times(make: Make) -> None:
    pauses = Pauses()
    process = make("print=loading tensors", f"signal={signal.SIGKILL:d}", sleep=pauses)
    pauses.end()
    pauses.end()
    await process.start()
    with pytest.raises(EngineStartFailed, match="ended by SIGKILL; if nobody killed it, memory ran out"):
        await process.wait_ready(LIMIT_SECONDS)
    assert (process.restarts, pauses.asked) == (2, [0.5, 1.0])


async def test_command_that_cannot_be_run_is_a_failure_like_any_other(make: Make) -> None:
    pauses = Pauses()
    pauses.end()
    pauses.end()
    process = EngineProcess("demo", lambda _: ["/nonexistent/engine"], timing=TIMING, sleep=pauses)
    await process.start()
    with pytest.raises(EngineStartFailed, match=r"cannot be launched: .*No such file"):
        await process.wait_ready(LIMIT_SECONDS)
    await process.stop()
    assert process.state is BackendState.STOPPED


@pytest.mark.parametrize("where", ["argv", "admitted"])
async def test_what_nobody_expected_at_a_launch_is_told(where: str, caplog: pytest.LogCaptureFixture) -> None:
    pauses = Pauses()
    pauses.end()
    pauses.end()

    def argv(_: str) -> list[str]:
        raise ValueError("a fault of ours")

    async def admitted() -> str:
        return "" if where == "argv" else str(argv(""))

    process = EngineProcess("demo", argv, timing=TIMING, sleep=pauses)
    process.admitted = admitted
    await process.start()
    with pytest.raises(EngineStartFailed, match="cannot be launched: ValueError, see the log"):
        await process.wait_ready(LIMIT_SECONDS)
    assert "a fault of ours" in caplog.text
    await process.stop()
    assert process.state is BackendState.STOPPED


async def test_crashed_engine_is_started_again_with_growing_delays(make: Make) -> None:
    pauses = Pauses()
    process = make(sleep=pauses, clock=Clock())
    await process.start()
    for restarts, delay_seconds in enumerate([0.5, 1.0, 2.0]):
        await process.wait_ready(LIMIT_SECONDS)
        assert process.restarts == restarts
        kill(process)
        async with asyncio.timeout(LIMIT_SECONDS):
            assert await pauses.begun.get() == delay_seconds
        assert (process.state, process.pid, process.gave_up) == (BackendState.FAILED, None, False)
        assert process.failure.startswith("ended by SIGKILL")
        pauses.end()
    await process.wait_ready(LIMIT_SECONDS)
    assert process.failure == ""


async def test_delay_is_short_again_after_a_steady_minute(make: Make) -> None:
    pauses, clock = Pauses(), Clock()
    process = make(sleep=pauses, clock=clock)
    await process.start()
    for ready_seconds, delay_seconds in [(0, 0.5), (59, 1.0), (60, 0.5), (1, 1.0)]:
        await process.wait_ready(LIMIT_SECONDS)
        clock.seconds += ready_seconds
        kill(process)
        async with asyncio.timeout(LIMIT_SECONDS):
            assert await pauses.begun.get() == delay_seconds
        pauses.end()
        await until(process, BackendState.READY)


async def test_engine_that_ends_by_itself_is_started_again(make: Make) -> None:
    pauses = Pauses()
    process = make(sleep=pauses)
    await process.start()
    await process.wait_ready(LIMIT_SECONDS)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    await until(process, BackendState.FAILED)
    assert process.failure == "ended with exit code 0"


async def test_silent_engine_is_killed_and_says_why(make: Make) -> None:
    pauses = Pauses()
    process = make("print=started", "silent", sleep=pauses, clock=Clock(step=TIMING.silence_seconds / 3))
    await process.start()
    async with asyncio.timeout(LIMIT_SECONDS):
        await pauses.begun.get()
    assert process.failure == "no answer within 10 s"


async def test_output_is_logged_line_by_line_and_made_harmless(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "backends.output")
    process = make("print=one\\ntwo \\e[31mred\\n\\n" + "x" * 10_000, "fail=1")
    await process.start()
    with pytest.raises(EngineStartFailed):
        await process.wait_ready(LIMIT_SECONDS)
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.DEBUG]
    assert messages[:2] == ["demo: one", "demo: two  [31mred"]
    assert max(map(len, messages)) < 5000


async def test_folder_of_somebody_else_is_not_used(make: Make) -> None:
    process = make(sleep=Pauses())
    process.folder.mkdir(mode=0o700)
    process.folder.chmod(0o777)
    await process.start()
    await until(process, BackendState.FAILED)
    assert "belongs to somebody else" in process.failure


async def test_socket_path_fits_the_kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("long" * 30)))
    process = EngineProcess("demo", fake_argv)
    assert process.folder.parent == Path("/tmp")
    monkeypatch.setattr("tempfile.tempdir", "/tmp/x")
    assert EngineProcess("demo", fake_argv).folder.parent == Path("/tmp/x")
