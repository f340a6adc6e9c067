"""BorrowedEngine: the calls to an engine that another process of this gateway keeps, behind the Backend seam.

Neighbours: engine.py (the one who owns it), lifecycle.py (EngineStatus, which is told), openai.py (the calls).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from math import inf
from typing import Any

from backends.base import BackendResponse, BackendState, InferenceRequest
from backends.engine import not_ready
from backends.http import HttpClient
from backends.inquiry import Inquiry
from backends.launch import EnginePlan
from backends.lifecycle import EngineStatus
from backends.openai import OpenAIBackend


class BorrowedEngine:
    """Calls an engine as EngineBackend does and knows of it what it is told. Belongs to one event loop."""

    def __init__(
        self, plan: EnginePlan, status: EngineStatus, let_go: Callable[[], None], wake: Callable[[], None]
    ) -> None:
        """The address in `status` holds for good; `plan` is what its owner started. `let_go` is called when this calls
        it no more, `wake` when somebody needs it while it is asleep."""
        self.name = plan.kind
        self.idle_stop_seconds = plan.idle_stop_seconds
        self._let_go = let_go
        self._ask_owner = wake
        self._status = status
        self._asked = False
        # As in EngineBackend: how long an answer may take is for the caller to say.
        self._client = HttpClient(status.address, response_timeout_seconds=inf, idle_timeout_seconds=inf)
        self._calls = OpenAIBackend(self.name, self._client, state=lambda: self.state)
        self.inquiry = Inquiry(HttpClient(status.address, max_connections=2))

    def tell(self, status: EngineStatus) -> None:
        """What is known of the engine from now on."""
        self._status = status
        self._asked = False

    @property
    def state(self) -> BackendState:
        """Whether a call makes sense now, as far as it has been told."""
        return self._status.state

    @property
    def progress(self) -> float:
        """How much of the model is loaded, from 0.0 to 1.0."""
        return self._status.progress

    @property
    def failure(self) -> str:
        """Why the engine is FAILED, in one line; empty when it is well."""
        return self._status.failure

    @property
    def warning(self) -> str:
        """As EngineBackend's."""
        return self._status.warning

    @property
    def refused(self) -> bool:
        """Whether it is FAILED because there is no room for it beside the other engines."""
        return self._status.refused

    @property
    def asleep(self) -> bool:
        """As EngineBackend's."""
        return self._status.asleep

    @property
    def restarts(self) -> int:
        """How often the engine had to be started again."""
        return self._status.restarts

    def send(self, request: InferenceRequest) -> Coroutine[Any, Any, BackendResponse]:
        """As EngineBackend's."""
        if self._status.state is not BackendState.READY:
            raise not_ready(self.name, self._status)
        return self._calls.send(request)

    def wake(self) -> None:
        """Has its owner start it if it is asleep; returns at once. Said once, until there is news of it."""
        if self.asleep and not self._asked:
            self._asked = True
            self._ask_owner()

    async def start(self) -> None:
        """Nothing: its owner starts the engine."""

    async def stop(self) -> None:
        """Closes the connections of this process, and with them its calls; the engine goes on."""
        await self._client.aclose()
        await self.inquiry.aclose()
        self._let_go()
