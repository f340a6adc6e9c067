"""An engine that is READY and hangs is seen, ended and started again; one that is only idle or busy is left alone."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace

import pytest

from backends.base import BackendState
from backends.kinds import KINDS, Timing
from backends.lifecycle import EngineStatus
from backends.probe import vllm_computes
from backends.process import EngineProcess
from tests.backends.supervised import LIMIT_SECONDS, Make, Pauses, until

pytestmark = [
    pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"]),
    pytest.mark.usefixtures("nothing_is_left_open"),
]

QUICK = Timing(
    grace_seconds=5.0,
    probe_interval_seconds=0.005,
    look_interval_seconds=0.01,
    look_timeout_seconds=0.2,
    hang_looks=3,
    stall_looks=4,
    idle_looks=3,
    idle_answer_seconds=0.2,
)
# A GGUF engine that is asked for a token when it is idle, as vLLM is.
ASKED = replace(KINDS["gguf"], computes=vllm_computes)
BUSY = "metrics=upshift_engine_running 2\\nupshift_engine_waiting 0\\nupshift_engine_steps_total 7\\n"
IDLE = "metrics=upshift_engine_running 0\\nupshift_engine_waiting 0\\nupshift_engine_steps_total 7\\n"


async def ready(process: EngineProcess) -> EngineStatus:
    await process.start()
    await process.wait_ready(LIMIT_SECONDS)
    return process.status


async def test_engine_that_no_longer_answers_is_started_again(make: Make) -> None:
    pauses = Pauses()
    process = make(timing=QUICK, sleep=pauses)
    await ready(process)
    pid = process.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await until(process, BackendState.FAILED)
    assert process.failure == "hung: 3 times in a row no answer to /health"
    pauses.end()
    await process.wait_ready(LIMIT_SECONDS)
    assert process.pid != pid


async def test_engine_that_has_requests_and_computes_nothing_is_started_again(make: Make) -> None:
    process = make(BUSY, timing=QUICK, sleep=Pauses())
    await ready(process)
    await until(process, BackendState.FAILED)
    assert process.failure == "hung: nothing computed for 0.04 s though it has requests"


async def test_idle_engine_that_answers_no_request_is_started_again(make: Make) -> None:
    process = make(IDLE, "deaf", timing=QUICK, sleep=Pauses(), kind=ASKED, served_names=["m"])
    await ready(process)
    await until(process, BackendState.FAILED)
    assert process.failure == "hung: idle, and a request of ours was not answered"


async def test_idle_engine_and_one_without_numbers_are_left_alone(make: Make) -> None:
    for modes in ((IDLE,), ()):
        process = make(*modes, timing=QUICK, sleep=Pauses(), kind=ASKED, served_names=["m"])
        await ready(process)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await until(process, BackendState.FAILED)
