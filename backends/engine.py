"""EngineBackend: a model served by an engine that we run ourselves, behind the Backend seam.

Neighbours: process.py (keeps the engine running), openai.py (calls it), factory.py (builds this from settings),
borrowed.py (the calls alone, for a process that does not own the engine).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from math import inf
from typing import Any

from backends.base import BackendResponse, BackendState, InferenceRequest
from backends.errors import BackendError, BackendLoading, BackendUnavailable
from backends.fit import NOTHING, Claim
from backends.hardware import Hardware
from backends.http import HttpClient
from backends.inquiry import Inquiry
from backends.lifecycle import EngineStatus
from backends.openai import OpenAIBackend
from backends.process import EngineProcess


def not_ready(kind: str, status: EngineStatus) -> BackendError:
    """What a call to an engine in any state but READY raises."""
    if status.state is BackendState.STARTING or status.asleep:
        return BackendLoading("The model is loading.", backend=kind, progress=status.progress)
    return BackendUnavailable(f"The engine is {status.state}: {status.failure or 'not running'}.", backend=kind)


class EngineBackend:
    """One engine process, which it owns, and the calls to it. `name` is the kind of engine, "gguf" or "vllm"; `inquiry`
    asks it how busy it is."""

    def __init__(
        self,
        kind: str,
        process: EngineProcess,
        idle_stop_seconds: float | None = None,
        claim: Callable[[Hardware], Claim] = lambda _: NOTHING,
    ) -> None:
        """`idle_stop_seconds` (None: never) and `claim` are for whoever decides which engines are in memory."""
        self.name = kind
        self.idle_stop_seconds = idle_stop_seconds
        self.claim = claim
        self._process = process
        self._connect()

    def _connect(self) -> None:
        # No deadlines down here: how long an answer may take is for the caller to say, who knows the client.
        self._client = HttpClient(self._process.address, response_timeout_seconds=inf, idle_timeout_seconds=inf)
        self._calls = OpenAIBackend(self.name, self._client, state=lambda: self.state)
        self.inquiry = Inquiry(HttpClient(self._process.address, max_connections=2))

    @property
    def engine(self) -> str:
        """The engine's own name, unique in this gateway."""
        return self._process.name

    @property
    def state(self) -> BackendState:
        """Whether a call makes sense now."""
        return self._process.state

    @property
    def progress(self) -> float:
        """How much of the model is loaded, from 0.0 to 1.0."""
        return self._process.progress

    @property
    def failure(self) -> str:
        """Why the engine is FAILED, in one line; empty when it is well."""
        return self._process.failure

    @property
    def warning(self) -> str:
        """What is known to be wrong with its version, in one line."""
        return self._process.warning

    @property
    def gave_up(self) -> bool:
        """Whether it will stay FAILED: its model cannot be loaded."""
        return self._process.gave_up

    @property
    def refused(self) -> bool:
        """Whether it is FAILED because there is no room for it beside the other engines."""
        return self._process.refused

    @property
    def asleep(self) -> bool:
        """Whether it was stopped for want of requests, or is being started after that."""
        return self._process.asleep

    @property
    def pid(self) -> int | None:
        """Of its process, if there is one."""
        return self._process.pid

    @property
    def restarts(self) -> int:
        """How often the engine had to be started again."""
        return self._process.restarts

    @property
    def status(self) -> EngineStatus:
        """All that callers in another process have to know."""
        return self._process.status

    async def changed(self) -> None:
        """Returns after the next change of `status`."""
        await self._process.changed()

    def send(self, request: InferenceRequest) -> Coroutine[Any, Any, BackendResponse]:
        """As the protocol says. Without an engine that is READY nothing is sent: BackendLoading while it starts,
        otherwise BackendUnavailable with the cause."""
        if self._process.state is not BackendState.READY:
            raise not_ready(self.name, self._process.status)
        return self._calls.send(request)

    def load_once(self, admitted: Callable[[], Awaitable[str]]) -> None:
        """Each load of the model waits for `admitted`, and is put off for a while where that gives a reason."""
        self._process.admitted = admitted

    def hold_up(self, why: str) -> None:
        """Tells, as `failure`, why it still waits for that."""
        self._process.hold_up(why)

    async def start(self) -> None:
        """Begins to load the model; returns at once. Also after `stop`."""
        if self.state is BackendState.DRAINING:
            await self.stop()
        if self.state is BackendState.STOPPED:
            self._connect()
        await self._process.start()

    async def wait_ready(self, timeout_seconds: float) -> None:
        """Returns once calls make sense. Raises EngineStartFailed or BackendTimeout."""
        await self._process.wait_ready(timeout_seconds)

    async def sleep(self) -> None:
        """Ends the engine within its grace, until `wake`. For one without requests: those would be cut off."""
        await self._process.sleep()

    def wake(self) -> None:
        """Starts it if it is asleep; returns at once. However many ask for it, it is one start."""
        self._process.wake()

    async def stop(self) -> None:
        """Ends the engine within its grace, and with it every call that is still running. Idempotent."""
        client, inquiry = self._client, self.inquiry
        try:
            await self._process.stop()
        finally:
            await client.aclose()
            await inquiry.aclose()
