"""Calls an Ollama server by its native API, as if it were an OpenAI endpoint.

Neighbours: request.py and answer.py (the translation), backends/openai.py (OpenAI endpoints), remote.py (the owner).
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from backends.access import Header, call_headers
from backends.base import BackendResponse, BackendState, InferenceRequest
from backends.errors import (
    BackendError,
    BackendOverloaded,
    BackendProtocolError,
    BackendUnavailable,
    ContextLengthExceeded,
    InvalidRequest,
)
from backends.http import HttpClient, HttpResponse
from backends.inquiry import READY, Health, Inquiry, silence
from backends.ollama.answer import OllamaAnswer
from backends.ollama.request import PATHS, native_request

MAX_ERROR_BODY_BYTES = 64 * 1024
_MAX_MESSAGE_CHARACTERS = 2000
_SHOWN_MODELS = 5


class OllamaCalls:
    """The calling side of one Ollama server, for one of its models. `client` belongs to whoever made it; `credentials`
    are headers for a proxy in front of it, Ollama itself asks for none."""

    def __init__(
        self,
        name: str,
        client: HttpClient,
        state: Callable[[], BackendState],
        *,
        model: str,
        context_tokens: int | None = None,
    ) -> None:
        """`context_tokens` is the context that Ollama loads `model` with; None leaves it to Ollama."""
        self.name = name
        self.credentials: tuple[Header, ...] = ()
        self._client = client
        self._state = state
        self._model = model
        self._context_tokens = context_tokens

    @property
    def state(self) -> BackendState:
        """Whether a call makes sense now."""
        return self._state()

    async def send(self, request: InferenceRequest) -> BackendResponse:
        """As the protocol says. A field that Ollama has nothing for is InvalidRequest, before anything is sent."""
        headers = call_headers(request.request_id, self.credentials)
        try:
            body = json.dumps(native_request(request, self._model, self._context_tokens)).encode()
            response = await self._client.request("POST", PATHS[request.operation], headers, body)
            if response.status != 200:
                try:
                    raise _error(response.status, await response.read(MAX_ERROR_BODY_BYTES))
                finally:
                    response.close()
        except BackendError as error:
            error.backend = self.name
            raise
        content_type = b"text/event-stream" if request.stream else b"application/json"
        chunks = _Translated(response, OllamaAnswer(request, int(time.time())))
        return BackendResponse(200, content_type, None, chunks, response.close)


class _Translated:
    """The answer's chunks as OpenAI's."""

    def __init__(self, response: HttpResponse, answer: OllamaAnswer) -> None:
        self._response = response
        self._answer = answer
        self._over = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        while not self._over:
            try:
                chunk = self._answer.feed(await anext(self._response.chunks))
            except StopAsyncIteration:
                self._over = True
                chunk = self._answer.finish()
            if chunk:
                return chunk
        raise StopAsyncIteration


async def ollama_health(inquiry: Inquiry, model: str) -> Health:
    """Whether an Ollama server is well and has `model`. Never raises a BackendError."""
    try:
        return tags_answer(*await inquiry.get("/api/tags"), model)
    except BackendError as error:
        return silence(error)


def tags_answer(status: int, body: bytes, model: str) -> Health:
    """What the answer to GET /api/tags means for `model`, which may leave out `:latest`."""
    if status != 200:
        return Health(BackendState.FAILED, f"GET /api/tags answered with status {status}")
    try:
        names = [str(entry["name"]) for entry in json.loads(body)["models"]]
    except (ValueError, TypeError, KeyError, RecursionError):
        return Health(BackendState.FAILED, "GET /api/tags answered with no list of models")
    wanted = model if ":" in model.rpartition("/")[2] else f"{model}:latest"
    if wanted in names:
        return READY
    shown = _printable(", ".join(names[:_SHOWN_MODELS])) or "none"
    return Health(BackendState.FAILED, f"it has no model {model} (`ollama pull {model}` gets it); it has {shown}")


def _error(status: int, body: bytes) -> BackendError:
    message, too_long = _what_it_says(body)
    message = message or f"Ollama answered with status {status}."
    if too_long:
        return ContextLengthExceeded(message)
    if status in (429, 503):
        return BackendOverloaded(message)
    if status == 404:  # the model is named by the configuration, not by the client
        return BackendUnavailable(message)
    if 400 <= status < 500 and status not in (401, 403, 499):
        return InvalidRequest(message)
    return BackendProtocolError(f"Ollama answered with status {status}: {message}")


def _what_it_says(body: bytes) -> tuple[str, bool]:
    """Ollama's `error` in one line, and whether it is about a prompt that does not fit. Since 0.34 it may be the error
    of the llama-server inside, as JSON in a string."""
    said = _member(body, "error")
    inner = _member(said, "error") if isinstance(said, str) and said.startswith("{") else None
    if isinstance(inner, dict):
        return _printable(str(inner.get("message", ""))), inner.get("type") == "exceed_context_size_error"
    text = _printable(said) if isinstance(said, str) else ""
    return text, "exceeds the context length" in text


def _member(text: str | bytes, name: str) -> Any:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document.get(name) if isinstance(document, dict) else None


def _printable(text: str) -> str:
    """What a server says may quote what a client sent."""
    shown = text[:_MAX_MESSAGE_CHARACTERS]
    return "".join(character if character.isprintable() else " " for character in shown).strip()
