"""What tests of supervised engines share: the fake engine's command line, time under control, looks at processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from backends.base import BackendState
from backends.http import HttpClient
from backends.kinds import Timing
from backends.process import EngineProcess
from tests.backends import fake_engine

TIMING = Timing(grace_seconds=5.0, probe_interval_seconds=0.005, silence_seconds=10.0)
LIMIT_SECONDS = 20.0

Make = Callable[..., EngineProcess]


def fake_argv(socket_path: str, *modes: str) -> list[str]:
    return [sys.executable, "-I", "-S", fake_engine.__file__, socket_path, *modes]


class Pauses:
    """A `sleep` that notes how long it was asked to and ends when told."""

    def __init__(self) -> None:
        self.asked: list[float] = []
        self.begun = asyncio.Queue[float]()
        self._end = asyncio.Semaphore(0)

    async def __call__(self, seconds: float) -> None:
        self.asked.append(seconds)
        self.begun.put_nowait(seconds)
        await self._end.acquire()

    def end(self) -> None:
        self._end.release()


class Clock:
    """Stands still unless moved, or goes on by `step` whenever somebody looks."""

    def __init__(self, step: float = 0.0) -> None:
        self.seconds = 0.0
        self._step = step

    def __call__(self) -> float:
        self.seconds += self._step
        return self.seconds


async def until(process: EngineProcess, state: BackendState) -> None:
    async with asyncio.timeout(LIMIT_SECONDS):
        while process.state is not state:
            await process.changed()


def is_gone(pid: int) -> bool:
    """Ended and reaped."""
    return not Path(f"/proc/{pid}").exists()


async def end_of(pid: int) -> None:
    """Returns when the process, anybody's child, has ended."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(pidfd, ended.set)
    try:
        async with asyncio.timeout(LIMIT_SECONDS):
            await ended.wait()
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)


def kill(process: EngineProcess) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)


async def ask(process: EngineProcess, method: str, path: str) -> int:
    client = HttpClient(process.address)
    try:
        response = await client.request(method, path)
        response.close()
    finally:
        await client.aclose()
    return response.status
