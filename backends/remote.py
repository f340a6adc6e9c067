"""RemoteBackend: a model served by an OpenAI endpoint that somebody else runs, behind the Backend seam.

Neighbours: openai.py (calls it), http.py (the connections), factory.py (builds this from settings).
"""

from __future__ import annotations

from collections.abc import Coroutine
from math import inf
from typing import Any

from backends.base import BackendResponse, BackendState, InferenceRequest
from backends.http import HttpClient
from backends.openai import OpenAIBackend


class RemoteBackend:
    """The calls to the endpoint at `address` (`http://host:port`), whose connections it owns. `name` is the kind of
    engine there. READY from start to stop: only a call tells whether the endpoint lives."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.state = BackendState.STOPPED
        # No deadlines down here: how long an answer may take is for the caller to say, who knows the client.
        self._client = HttpClient(address, response_timeout_seconds=inf, idle_timeout_seconds=inf)
        self._calls = OpenAIBackend(name, self._client, state=lambda: self.state)

    def send(self, request: InferenceRequest) -> Coroutine[Any, Any, BackendResponse]:
        """As the protocol says; after `stop` it raises BackendUnavailable."""
        return self._calls.send(request)

    async def start(self) -> None:
        """Calls may come; nothing is sent yet."""
        self.state = BackendState.READY

    async def stop(self) -> None:
        """Ends every call that is still running, for good. Idempotent."""
        self.state = BackendState.STOPPED
        await self._client.aclose()
