"""EngineProcess: one engine that is ours, kept running: spawned, watched until ready and from then on, restarted after
a crash, ended.

Neighbours: lifecycle.py (the states and the delays), child.py (one process), kinds.py (how patient to be, what to ask),
vigil.py (looks after a READY one), launch.py (argv).
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

from backends import probe, segments
from backends.base import BackendState
from backends.child import Child
from backends.errors import BackendTimeout, EngineStartFailed
from backends.folder import SOCKET, make_private, new_folder
from backends.http import HttpClient
from backends.kinds import KINDS, EngineKind, Timing
from backends.lifecycle import MAX_DELAY_SECONDS, REFUSED, EngineStatus, Event, Lifecycle
from backends.output import cause
from backends.selection import GGUF
from backends.vigil import keep_vigil_until

logger = logging.getLogger(__name__)


async def _always() -> str:
    return ""


class EngineProcess:
    """Supervises one engine in one task. Belongs to the event loop that calls `start`.

    `progress` is the loading of the model from 0.0 to 1.0; `failure` says in one line why it is FAILED; `gave_up` that
    it will stay so; `pid` is the running process or None; `address` is where it answers, fixed from the beginning.
    `asleep`: from `sleep` until it is READY again, or has failed. Each load waits for `admitted`, which gives "", or
    why it has to be put off. `warning` is what is known to be wrong with its version.
    """

    def __init__(
        self,
        name: str,
        argv: Callable[[str], Sequence[str]],
        *,
        kind: EngineKind = KINDS[GGUF],
        served_names: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        timing: Timing | None = None,
        dozes: bool = False,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`argv` makes the command line from the path of the Unix socket, in a thread, for it may take its time; what
        it cannot make raises EngineStartFailed. `served_names` are what it has to answer to, `environment` comes on top
        of ours, `timing` instead of the kind's; one that `dozes` can sleep without ending. `sleep` and `clock` time the
        restarts."""
        self.name = name
        self.folder = new_folder()
        self.socket_path = self.folder / SOCKET
        self.address = f"unix:{self.socket_path}"
        self._argv = argv
        self._kind = kind
        self._served_names = tuple(served_names)
        self._environment = environment or {}
        self._timing = timing or kind.timing
        self._dozes = dozes
        self.admitted: Callable[[], Awaitable[str]] = _always
        self._sleep = sleep
        self._clock = clock
        # From start to stop:
        self._lifecycle = Lifecycle()
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()
        self.asleep = False
        self._wanted = False
        self._ending = False
        self.gave_up = False
        self.failure = self.warning = ""
        self.refused = False
        # Of the running process:
        self.progress = 0.0
        self.pid: int | None = None
        self._ready_at: float | None = None
        self._last_heard = 0.0
        self._verdict = ""
        self._to_sleep, self._to_wake = asyncio.Event(), asyncio.Event()

    @property
    def state(self) -> BackendState:
        """Whether a call makes sense now."""
        return self._lifecycle.state

    @property
    def status(self) -> EngineStatus:
        """What callers, here or in another process, have to know."""
        told = self.progress, self.failure, self.restarts, self.asleep, self.warning, self.refused
        return EngineStatus(self.address, self.state, *told)

    @property
    def restarts(self) -> int:
        """How often it had to be started again since `start`."""
        return max(self._lifecycle.starts - 1, 0)

    async def start(self) -> None:
        """Brings the engine up in the background; returns at once, after a `stop` that is under way at its end.
        Idempotent while it runs."""
        if self.state is BackendState.DRAINING:
            await self.stop()
        self._begin()

    def _begin(self) -> None:
        if self._task is None or self._task.done():
            self.gave_up = self._ending = False
            self._enter(Event.START)
            self._task = asyncio.create_task(self._supervise(), name=f"engine {self.name}")
        elif self.state is BackendState.STOPPED:
            self._enter(Event.START)
            self._to_wake.set()

    async def stop(self) -> None:
        """Ends the engine: SIGTERM, after the grace SIGKILL for its whole group. Idempotent; every caller waits for the
        end. Cancelled: SIGKILL now."""
        self.asleep = False
        await self._end()

    async def sleep(self) -> None:
        """As `stop`, but only until somebody calls `wake`; one that dozes keeps its process and gives its memory up."""
        self.asleep, self._wanted = True, False
        if self._dozes and self.state is BackendState.READY:
            self._enter(Event.DRAIN)
            self._to_sleep.set()
            await self._drained()
        else:
            await self._end()
        if self._wanted:
            self.wake()

    async def _drained(self) -> None:
        while self.state is BackendState.DRAINING:
            await self.changed()

    def wake(self) -> None:
        """Starts an engine that is asleep; returns at once. One that is still being stopped is started after that.
        However often it is called, it is one start."""
        self._wanted = True
        if self.asleep and self.state is BackendState.STOPPED:
            self._begin()

    async def _end(self) -> None:
        if self._task is None or (self.state is BackendState.STOPPED and self._task.done()):
            return
        if not self._ending:
            self._ending = True
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
            self.progress = 0.0

    def hold_up(self, why: str) -> None:
        """It is STARTING and waits for something else than itself: `failure` says for what."""
        self.failure = why
        self._tell()

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
        self._verdict = ""
        self._to_sleep.clear()
        self._to_wake.clear()
        exit_code = None
        try:
            why = await self.admitted()
            self.refused = bool(why)
            if why:
                return self._fail(why, MAX_DELAY_SECONDS)
            exit_code, why = await self._run_child()
        except OSError as error:
            why = f"cannot be launched: {error}"
        except EngineStartFailed as error:
            exit_code, why = REFUSED, error.message
        except Exception as error:
            # A fault of ours. Untold, the engine would be STARTING for ever.
            logger.exception("engine %s cannot be launched", self.name)
            why = f"cannot be launched: {type(error).__name__}, see the log"
        ready_seconds = 0.0 if self._ready_at is None else self._clock() - self._ready_at
        if self.state in (BackendState.DRAINING, BackendState.STOPPED):
            # It slept, or was about to: waking it up takes a whole start.
            logger.warning("engine %s, asleep: %s", self.name, why)
            if self.state is BackendState.DRAINING:
                self._enter(Event.STOPPED)
            return None
        return self._fail(why, self._lifecycle.restart_delay_seconds(exit_code, ready_seconds))

    def _fail(self, why: str, delay_seconds: float | None) -> float | None:
        self.failure = why
        self.gave_up = delay_seconds is None
        self._enter(Event.EXITED)
        if delay_seconds is None:
            logger.error("engine %s could not be started: %s", self.name, why)
        else:
            logger.warning("engine %s: %s; next start in %g s", self.name, why, delay_seconds)
        return delay_seconds

    async def _run_child(self) -> tuple[int, str]:
        """Raises OSError or EngineStartFailed when there is no process to run."""
        argv = await asyncio.to_thread(self._argv, str(self.socket_path))
        make_private(self.folder)
        self.socket_path.unlink(missing_ok=True)
        self._last_heard = self._clock()
        child = await Child.spawn(self.name, argv, self._environment, self._hear)
        self.pid = child.pid
        watch = asyncio.create_task(self._watch(child), name=f"watch {self.name}")
        try:
            exit_code = await child.wait()
        except asyncio.CancelledError:
            watch.cancel()
            await child.end(self._timing.grace_seconds)
            raise
        finally:
            self.pid = None
            child.kill()
            child.close()
            watch.cancel()
            await asyncio.wait({watch})
            # Where the guard over vLLM's processes was killed, nobody else is left to do it.
            await asyncio.to_thread(segments.remove, self.folder / segments.NOTES, child.pid)
        return exit_code, self._verdict or cause(exit_code, child.output.lines, self._kind.sign)

    def _hear(self, line: str) -> None:
        """A line of the engine's output."""
        self._last_heard = self._clock()
        sign = self._kind.sign(line)
        if sign is not None and sign.progress is not None:
            self._advance(sign.progress)

    def _advance(self, progress: float) -> None:
        if self.state is BackendState.STARTING and progress > self.progress:
            self.progress = progress
            self._tell()

    # -- watching the process ------------------------------------------------------------------------------------

    async def _watch(self, child: Child) -> None:
        """Until the process ends; kills one that is of no use."""
        client = HttpClient(self.address)
        try:
            await self._until_ready(client)
            while self.state is BackendState.STARTING:  # otherwise the answer crossed a stop
                self.progress = 1.0
                self.failure = ""
                self._ready_at = self._clock()
                self._enter(Event.BECAME_READY)
                logger.info("engine %s is ready", self.name)
                await self._learn_faults(client)
                await keep_vigil_until(self._to_sleep, client, self._kind, self._served_names, self._timing)
                await self._doze(client)
                await self._until_ready(client)
        except probe.Unfit as problem:
            self._verdict = str(problem)
            child.kill()
        finally:
            await client.aclose()

    async def _learn_faults(self, client: HttpClient) -> None:
        """Between two starts its environment may have become another one."""
        before, self.warning = self.warning, await probe.known_faults(client, self._kind.release)
        if self.warning != before:
            self._tell()
            if self.warning:
                logger.warning("engine %s: %s", self.name, self.warning)

    async def _doze(self, client: HttpClient) -> None:
        """From the request to sleep to the one to wake, and until that is done."""
        self._to_sleep.clear()
        if not await self._kind.sleeps(client):
            raise probe.Unfit("it did not go to sleep")
        self.progress = 0.0
        if self.state is BackendState.DRAINING:
            self._enter(Event.STOPPED)
        await self._to_wake.wait()
        self._to_wake.clear()
        why = await self.admitted()
        if why or not await self._kind.wakes(client):
            raise probe.Unfit(why or "it did not wake up")
        self._last_heard = self._clock()

    async def _until_ready(self, client: HttpClient) -> None:
        while (progress := await self._kind.ready(client, self._served_names)) != 1.0:
            if progress is not None:
                self._last_heard = self._clock()
                self._advance(progress)
            elif self._clock() - self._last_heard > self._timing.silence_seconds:
                raise probe.Unfit(f"no answer within {self._timing.silence_seconds:g} s")
            await asyncio.sleep(self._timing.probe_interval_seconds)

    def _enter(self, event: Event) -> None:
        if self._lifecycle.on(event) in (BackendState.READY, BackendState.FAILED):
            self.asleep = False
        self._tell()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
