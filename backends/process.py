"""EngineProcess: one engine that is ours, kept running: spawned, watched until ready, restarted after a crash, ended.

Neighbours: lifecycle.py (the states and the delays), child.py (one process), launch.py (argv), http.py (asks /health).
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from backends.base import BackendState
from backends.child import ERROR_PREFIX, Child, cause
from backends.errors import BackendError, BackendTimeout, EngineStartFailed
from backends.http import HttpClient
from backends.lifecycle import EngineStatus, Event, Lifecycle

# sockaddr_un holds 108 bytes with the NUL at the end.
_MAX_SOCKET_PATH_BYTES = 107
_MAX_HEALTH_BYTES = 16 * 1024

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient an EngineProcess is. A starting engine that has not answered /health for `silence_seconds` is killed;
    loading may take as long as it likes, for meanwhile it answers."""

    grace_seconds: float = 10.0
    probe_interval_seconds: float = 0.05
    probe_timeout_seconds: float = 5.0
    silence_seconds: float = 120.0


class EngineProcess:
    """Supervises one engine in one task. Belongs to the event loop that calls `start`.

    `progress` is the loading of the model from 0.0 to 1.0; `failure` says in one line why it is FAILED; `gave_up` that
    it will stay so; `pid` is the running process or None; `address` is where it answers, fixed from the beginning.
    """

    def __init__(
        self,
        name: str,
        argv: Callable[[str], Sequence[str]],
        *,
        timing: Timing | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`argv` makes the command line from the path of the Unix socket; `sleep` and `clock` time the restarts."""
        self.name = name
        self.folder = _new_folder()
        self.socket_path = self.folder / "engine.sock"
        self.address = f"unix:{self.socket_path}"
        self._argv = argv
        self._timing = timing or Timing()
        self._sleep = sleep
        self._clock = clock
        # From start to stop:
        self._lifecycle = Lifecycle()
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self.gave_up = False
        self.failure = ""
        # Of the running process:
        self.progress = 0.0
        self.pid: int | None = None
        self._ready_at: float | None = None

    @property
    def state(self) -> BackendState:
        """Whether a call makes sense now."""
        return self._lifecycle.state

    @property
    def status(self) -> EngineStatus:
        """What callers, here or in another process, have to know."""
        return EngineStatus(self.address, self.state, self.progress, self.failure)

    @property
    def restarts(self) -> int:
        """How often it had to be started again since `start`."""
        return max(self._lifecycle.starts - 1, 0)

    async def start(self) -> None:
        """Brings the engine up in the background; returns at once, after a `stop` that is under way at its end.
        Idempotent while it runs."""
        if self.state is BackendState.DRAINING:
            await self.stop()
        if self._task is None or self._task.done():
            self.gave_up = False
            self._enter(Event.START)
            self._task = asyncio.create_task(self._supervise(), name=f"engine {self.name}")

    async def stop(self) -> None:
        """Ends the engine: SIGTERM, after the grace SIGKILL for its whole group. Idempotent; every caller waits for the
        end. Cancelled: SIGKILL now."""
        if self._task is None or self.state is BackendState.STOPPED:
            return
        if self.state is not BackendState.DRAINING:
            self._enter(Event.DRAIN)
            self._task.cancel()
        try:
            await asyncio.wait({self._task})
        except asyncio.CancelledError:
            self._task.cancel()
            raise
        if self.state is BackendState.DRAINING:
            self._enter(Event.STOPPED)
            self.failure = ""

    async def wait_ready(self, timeout_seconds: float) -> None:
        """Returns when the engine is READY. Raises EngineStartFailed when it will not be, BackendTimeout when it is not
        yet."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while self.state is not BackendState.READY:
                    if self.gave_up or self.state in (BackendState.STOPPED, BackendState.DRAINING):
                        raise EngineStartFailed(self.failure or "the engine is stopped", backend=self.name)
                    await self.changed()
        except TimeoutError:
            raise BackendTimeout(f"not ready within {timeout_seconds:g} s", backend=self.name) from None

    async def changed(self) -> None:
        """Returns after the next change of `state` or `progress`."""
        await self._changed.wait()

    # -- the supervising task ------------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        try:
            while True:
                delay_seconds = await self._live_once()
                if delay_seconds is None:
                    return
                await self._sleep(delay_seconds)
                self._enter(Event.START)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    async def _live_once(self) -> float | None:
        """One process from start to end. Returns the delay before the next one, None for no next one."""
        self.progress = 0.0
        self._ready_at = None
        exit_code = None
        try:
            exit_code, why = await self._run_child()
        except OSError as error:
            why = f"cannot be launched: {error}"
        ready_seconds = 0.0 if self._ready_at is None else self._clock() - self._ready_at
        self.failure = why
        delay_seconds = self._lifecycle.restart_delay_seconds(exit_code, ready_seconds)
        self.gave_up = delay_seconds is None
        self._enter(Event.EXITED)
        if delay_seconds is None:
            logger.error("engine %s could not be started: %s", self.name, why)
        else:
            logger.warning("engine %s: %s; next start in %g s", self.name, why, delay_seconds)
        return delay_seconds

    async def _run_child(self) -> tuple[int, str]:
        """Raises OSError when there is no process to run."""
        _make_private(self.folder)
        self.socket_path.unlink(missing_ok=True)
        child = await Child.spawn(self.name, self._argv(str(self.socket_path)))
        self.pid = child.pid
        probe = asyncio.create_task(self._probe(child), name=f"probe {self.name}")
        try:
            exit_code = await child.wait()
        except asyncio.CancelledError:
            probe.cancel()
            await child.end(self._timing.grace_seconds)
            raise
        finally:
            self.pid = None
            child.kill()
            child.close()
            probe.cancel()
            await asyncio.wait({probe})
        return exit_code, cause(exit_code, child.output.lines)

    async def _probe(self, child: Child) -> None:
        """Asks /health until the engine is ready."""
        client = HttpClient(self.address)
        last_heard = self._clock()
        try:
            while (progress := await self._ask(client)) != 1.0:
                if progress is not None:
                    self.progress = progress
                    self._tell()
                    last_heard = self._clock()
                elif self._clock() - last_heard > self._timing.silence_seconds:
                    child.output.lines.append(f"{ERROR_PREFIX}no answer within {self._timing.silence_seconds:g} s")
                    child.kill()
                await asyncio.sleep(self._timing.probe_interval_seconds)
        finally:
            await client.aclose()
        if self.state is not BackendState.STARTING:
            return  # the answer crossed a stop
        self.progress = 1.0
        self.failure = ""
        self._ready_at = self._clock()
        self._enter(Event.BECAME_READY)
        logger.info("engine %s is ready", self.name)

    async def _ask(self, client: HttpClient) -> float | None:
        """The progress that /health tells, 1.0 once ready; None without an answer."""
        try:
            async with asyncio.timeout(self._timing.probe_timeout_seconds):
                response = await client.request("GET", "/health", [], b"")
                try:
                    body = await response.read(_MAX_HEALTH_BYTES)
                finally:
                    await response.aclose()
        except (BackendError, TimeoutError):
            return None
        return 1.0 if response.status == 200 else _progress_in(body)

    def _enter(self, event: Event) -> None:
        self._lifecycle.on(event)
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _progress_in(body: bytes) -> float:
    """Below 1.0 whatever the engine says: only its 200 makes it ready."""
    try:
        value = json.loads(body)["progress"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return 0.0
    # In this order NaN becomes 0.0.
    return float(min(max(0.0, value), 0.99)) if isinstance(value, int | float) else 0.0


def _make_private(folder: Path) -> None:
    """Raises OSError unless `folder` is then ours alone."""
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} belongs to somebody else")


def _new_folder() -> Path:
    """A name that nobody can guess, made when it is needed. In /tmp where the configured folder would make the socket's
    path too long for the kernel."""
    name = f"upshift-{secrets.token_hex(8)}"
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - the name is random and the folder 0700
        folder = Path(parent, name)
        if len(os.fsencode(folder / "engine.sock")) <= _MAX_SOCKET_PATH_BYTES:
            break
    return folder
