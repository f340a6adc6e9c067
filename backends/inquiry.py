"""What can be asked of an engine without having it compute: is it well, which models does it serve, how busy is it.

Neighbours: http.py (the connections), load.py (reads /metrics), remote.py (asks until it stops). The verdicts are pure.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from backends.base import BackendState
from backends.errors import BackendError, BackendProtocolError, BackendTimeout
from backends.http import HttpClient
from backends.http_head import Headers
from backends.load import EngineLoad, parse_load

ANSWER_SECONDS = 5.0
# vLLM's /metrics has 100 KB, and as much again for each data-parallel part.
_MAX_BODY_BYTES = 4 * 1024 * 1024
_SHOWN_MODELS = 5
_MAX_NAME_CHARACTERS = 128


class Health(NamedTuple):
    """What a look at an engine says: READY, STARTING (its model loads) or FAILED with the reason in one line. An
    engine that is merely `slow` to say so may be well: the next look decides."""

    state: BackendState
    failure: str = ""
    slow: bool = False


READY = Health(BackendState.READY)


class Inquiry:
    """Asks one engine, on a client whose connections carry no requests: a full pool must not look like a dead engine.
    Owns `client`; `headers` go with every question and may be replaced."""

    def __init__(self, client: HttpClient, headers: Headers = (), timeout_seconds: float = ANSWER_SECONDS) -> None:
        self.headers = headers
        self._client = client
        self._timeout_seconds = timeout_seconds

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of GET `path`. Raises BackendError."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                response = await self._client.request("GET", path, self.headers)
                try:
                    return response.status, await response.read(_MAX_BODY_BYTES)
                finally:
                    response.close()
        except TimeoutError:
            raise BackendTimeout(f"GET {path} was not answered within {self._timeout_seconds:g} s.") from None

    async def load(self) -> EngineLoad:
        """How busy it is now. Raises BackendError, also where it does not say."""
        taken_at = time.monotonic()
        status, body = await self.get("/metrics")
        if status != 200:
            raise BackendProtocolError(f"GET /metrics answered with status {status}.")
        load = parse_load(body, taken_at)
        if load is None:
            raise BackendProtocolError("GET /metrics shows no engine's numbers.")
        return load

    async def aclose(self) -> None:
        """Idempotent."""
        await self._client.aclose()


async def openai_health(inquiry: Inquiry, names: Sequence[str]) -> Health:
    """Whether an OpenAI endpoint is well and serves `names`. Never raises a BackendError."""
    try:
        # An endpoint without /health is asked for its models only.
        health = health_answer(*await inquiry.get("/health"))
        return health if health != READY else models_answer(*await inquiry.get("/v1/models"), names)
    except BackendError as error:
        return silence(error)


def silence(error: BackendError) -> Health:
    """What it means to get no answer. Without a connection it is gone; without an answer it may be slow."""
    return Health(BackendState.FAILED, error.message.rstrip("."), isinstance(error, BackendTimeout))


def health_answer(status: int, body: bytes) -> Health:
    """What the answer to GET /health means. vLLM: 200 or 503; llama-server: 503 also while it loads."""
    if status in (200, 404, 405, 501):
        return READY
    if status == 503 and b"oading" in body[:1000]:  # "Loading model", "model_loading"
        return Health(BackendState.STARTING)
    return Health(BackendState.FAILED, f"GET /health answered with status {status}")


def models_answer(status: int, body: bytes, names: Sequence[str]) -> Health:
    """What the answer to GET /v1/models means: each of `names` must be among them, for bodies pass unchanged."""
    if status in (401, 403):
        return Health(BackendState.FAILED, f"it refuses the API key (status {status}); see api_key and api_key_file")
    models = _models(body) if status == 200 else None
    if models is None:
        return Health(BackendState.FAILED, f"GET /v1/models answered with status {status} and no list of models")
    if len(models) == 1 and models[0].get("owned_by") == "llamacpp":
        return READY  # a llama-server with one model answers to every name
    served = [str(model.get("id")) for model in models]
    missing = [name for name in names if name not in served]
    if not missing:
        return READY
    shown = ", ".join(_printable(name) for name in served[:_SHOWN_MODELS]) or "nothing"
    more = f" and {len(served) - _SHOWN_MODELS} more" if len(served) > _SHOWN_MODELS else ""
    return Health(BackendState.FAILED, f"it does not serve {', '.join(missing)}; it serves {shown}{more}")


def _models(body: bytes) -> list[dict[str, Any]] | None:
    try:
        data = json.loads(body)["data"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    if not isinstance(data, list) or not all(isinstance(model, dict) for model in data):
        return None
    return data


def _printable(text: str) -> str:
    shown = text[:_MAX_NAME_CHARACTERS]
    return "".join(character if character.isprintable() else " " for character in shown)
