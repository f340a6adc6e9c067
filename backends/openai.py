"""Calls any OpenAI-compatible endpoint: our GGUF engine, vLLM, llama-server.

Bodies pass unchanged in both directions; an answer that is not a 200 becomes the error that it means.
Neighbours: http.py (the connections), errors.py (what is raised), engine.py (an engine of ours behind this).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any

from backends.access import Header, call_headers
from backends.base import BackendResponse, BackendState, InferenceRequest, Operation
from backends.errors import (
    BackendError,
    BackendLoading,
    BackendOverloaded,
    BackendProtocolError,
    ContextLengthExceeded,
    InvalidRequest,
    shown_kind,
)
from backends.http import HttpClient

MAX_ERROR_BODY_BYTES = 64 * 1024
_MAX_MESSAGE_CHARACTERS = 2000
_MAX_RETRY_AFTER_SECONDS = 3600.0

_TYPES = frozenset((b"application/json", b"text/event-stream"))
_USUAL_TYPES = _TYPES | {b"text/event-stream; charset=utf-8"}

# How a prompt that does not fit is told by llama-server, in `type`, and by vLLM, in words alone.
_LLAMA_SERVER_TOO_LONG = "exceed_context_size_error"
_VLLM_TOO_LONG = re.compile(r"maximum (?:context|model) length|greater than max_model_len")

_PATHS = {Operation.CHAT: "/v1/chat/completions", Operation.COMPLETION: "/v1/completions"}

# RFC 9110 section 7.6.1: they are about one connection, not about the message.
_HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-authenticate proxy-authorization proxy-connection te trailer transfer-encoding "
    b"upgrade".split()
)
# Set here, settled between client and gateway, or the client's secret, which is no business of an engine.
_NOT_FORWARDED = _HOP_BY_HOP.union(
    b"host content-length content-type accept-encoding expect x-request-id authorization x-api-key api-key "
    b"cookie".split()
)


class OpenAIBackend:
    """The calling side of one endpoint. `name` is its configured name; `client` belongs to whoever made it.
    `credentials` are the headers that let us in; they may be replaced at any time."""

    def __init__(self, name: str, client: HttpClient, state: Callable[[], BackendState]) -> None:
        self.name = name
        self.credentials: tuple[Header, ...] = ()
        self._client = client
        self._state = state

    @property
    def state(self) -> BackendState:
        """Whether a call makes sense now."""
        return self._state()

    async def send(self, request: InferenceRequest) -> BackendResponse:
        """As the protocol says; `chunks` may raise BackendProtocolError and BackendTimeout."""
        headers = call_headers(request.request_id, self.credentials)
        if request.headers:
            headers += _end_to_end(request.headers)
        try:
            response = await self._client.request("POST", _PATHS[request.operation], headers, request.body)
            try:
                fields = dict(response.headers)
                if response.status != 200:
                    refusal = await response.read(MAX_ERROR_BODY_BYTES)
                    raise _error(response.status, fields.get(b"retry-after", b""), refusal)
                content_type = fields.get(b"content-type", b"")
                if content_type not in _USUAL_TYPES or b"content-encoding" in fields:
                    _check(content_type, fields.get(b"content-encoding"))
            except BaseException:
                response.close()
                raise
        except BackendError as error:
            error.backend = self.name
            raise
        length = fields.get(b"content-length")
        content_bytes = None if length is None else int(length)
        body = None if request.stream else response.whole()
        return BackendResponse(200, content_type, content_bytes, response.chunks, response.close, body)


def _end_to_end(headers: Sequence[Header]) -> list[Header]:
    """`headers` without those that end here, to which a Connection header may add."""
    kept = [header for header in headers if header[0].lower() not in _NOT_FORWARDED]
    options = [value for name, value in headers if name.lower() == b"connection"] if len(kept) < len(headers) else []
    if options:
        named = {option.strip().lower() for option in b",".join(options).split(b",")}
        kept = [header for header in kept if header[0].lower() not in named]
    return kept


def _check(content_type: bytes, content_encoding: bytes | None) -> None:
    """Raises BackendProtocolError for anything but plain JSON or events."""
    if content_type.partition(b";")[0].strip().lower() not in _TYPES:
        raise BackendProtocolError(f"It answered with {content_type.decode('ascii', 'replace') or 'no content type'}.")
    # Nothing was said about accepting any.
    if content_encoding and content_encoding.lower() != b"identity":
        raise BackendProtocolError("It answered with a compressed body.")


def _error(status: int, retry_after: bytes, body: bytes) -> BackendError:
    detail = _detail(body)
    message = _text(detail.get("message")) or f"The engine answered with status {status}."
    code, kind_of_error = detail.get("code"), detail.get("type")
    # llama-server says it without a code of OpenAI's kind.
    if status == 503 and (code == "model_loading" or message == "Loading model"):
        return BackendLoading(message, progress=_progress(detail))
    if status in (429, 503):
        return BackendOverloaded(f"It answered with status {status}.", retry_after_seconds=_seconds(retry_after))
    # Neither is about the client's request: the endpoint wants a key that we do not have.
    if 400 <= status < 500 and status not in (401, 403):
        told = code == "context_length_exceeded" or kind_of_error == _LLAMA_SERVER_TOO_LONG
        kind = ContextLengthExceeded if told or _VLLM_TOO_LONG.search(message) else InvalidRequest
        return kind(message, param=_text(detail.get("param")) or None)
    # This goes to the log. What the engine says may hold the prompt that it stumbled over, so only its kind is kept.
    return BackendProtocolError(f"It answered with status {status}{shown_kind(_text(code), _text(kind_of_error))}.")


def _detail(body: bytes) -> dict[str, Any]:
    """The `error` object of an OpenAI error body; empty for anything else."""
    try:
        detail = json.loads(body)["error"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return {}
    return detail if isinstance(detail, dict) else {}


def _text(value: Any) -> str:
    """One line that is safe to show; what an engine says may quote what a client sent."""
    if not isinstance(value, str):
        return ""
    shown = value[:_MAX_MESSAGE_CHARACTERS]
    return "".join(character if character.isprintable() else " " for character in shown).strip()


def _progress(detail: dict[str, Any]) -> float:
    value = detail.get("progress")
    # In this order NaN becomes 0.0.
    return min(max(0.0, value), 1.0) if isinstance(value, float) else 0.0


def _seconds(value: bytes) -> float | None:
    """Retry-After in seconds; None without one that can be read. Its other form, a date, is not worth a parser."""
    return min(float(value), _MAX_RETRY_AFTER_SECONDS) if value.isdigit() and len(value) < 10 else None
