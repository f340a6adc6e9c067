"""A scriptable backend at the one seam that tests fake: it hangs, lies, breaks off or dawdles exactly where told to.

A script is a list of steps, done in order: bytes are yielded, an Event is waited for, an exception is raised.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from backends.base import BackendResponse, BackendState, InferenceRequest, Usage
from backends.errors import BackendError
from tests.canary import ANSWER

Step = bytes | asyncio.Event | BaseException

SSE_HEADERS = ((b"content-type", b"text/event-stream"),)
JSON_HEADERS = ((b"content-type", b"application/json"),)


def chat_body(text: str = ANSWER, usage: Usage | None = None) -> bytes:
    """A whole chat answer as an engine would send it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    body: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": "fake"}
    return json.dumps(body | {"choices": [choice], "usage": _usage(usage or Usage(3, 2))}).encode()


def chat_events(*pieces: str, usage: Usage | None = None) -> list[bytes]:
    """The same as server-sent events, one chunk per piece, a usage event if given, and the end marker."""
    chunks = [_event({"choices": [{"index": 0, "delta": {"content": piece}}]}) for piece in pieces]
    chunks.append(_event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
    if usage is not None:
        chunks.append(_event({"choices": [], "usage": _usage(usage)}))
    return [*chunks, b"data: [DONE]\n\n"]


def _event(fields: dict[str, Any]) -> bytes:
    body: dict[str, Any] = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "fake"}
    return b"data: " + json.dumps(body | fields).encode() + b"\n\n"


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }


async def body_of(response: BackendResponse) -> bytes:
    """The whole body, whether it came with the headers or behind them."""
    return (response.body or b"") + b"".join([chunk async for chunk in response.chunks])


class FakeBackend:
    """A Backend that plays `before` (ahead of its headers) and `script` (the body) for every request.

    Without a script it answers as asked: server-sent events for a stream, one JSON body otherwise. It keeps what tests
    look at: `requests` as received, `open` responses, how many were `aborted` (closed before the script's end),
    `cancelled` (while `before` was played) and `finished`. The events `called` and `closed` are set by the first
    request and the first close.
    """

    def __init__(
        self,
        name: str = "fake",
        script: Sequence[Step] | None = None,
        *,
        before: Sequence[asyncio.Event | BaseException] = (),
        status: int = 200,
        headers: Sequence[tuple[bytes, bytes]] | None = None,
        state: BackendState = BackendState.READY,
    ) -> None:
        self.name = name
        self.script = script
        self.before = before
        self.status = status
        self.headers = headers
        self.state = state
        self.progress = 1.0 if state is BackendState.READY else 0.0
        self.failure = ""
        self.restarts = 0
        # What happened:
        self.requests: list[InferenceRequest] = []
        self.open = 0
        self.aborted = 0
        self.cancelled = 0
        self.finished = 0
        self.called = asyncio.Event()
        self.closed = asyncio.Event()

    async def send(self, request: InferenceRequest) -> BackendResponse:
        """Plays `before`, then hands out the script."""
        self.requests.append(request)
        self.called.set()
        try:
            for step in self.before:
                await _wait_or_raise(step)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        except BackendError as error:
            error.backend = self.name
            raise
        return self._answer(request)

    async def start(self) -> None:
        """Ready at once, unless the test chose another state than STOPPED for it."""
        if self.state is BackendState.STOPPED:
            self.state = BackendState.READY
            self.progress = 1.0

    async def stop(self) -> None:
        """Idempotent, as the real ones."""
        self.state = BackendState.STOPPED

    def _answer(self, request: InferenceRequest) -> BackendResponse:
        script, headers = self.script, self.headers
        if script is None:
            usage = Usage(3, 2) if request.include_usage else None
            script = chat_events(ANSWER[:-5], ANSWER[-5:], usage=usage) if request.stream else [chat_body()]
        if headers is None:
            headers = SSE_HEADERS if request.stream else JSON_HEADERS
        playing = _Playing(self, script)
        self.open += 1
        fields = {name.lower(): value for name, value in headers}
        length = fields.get(b"content-length")
        return BackendResponse(
            self.status,
            fields.get(b"content-type", b""),
            None if length is None else int(length),
            playing.chunks(),
            playing.close,
        )


class _Playing:
    """One response on its way."""

    def __init__(self, backend: FakeBackend, script: Sequence[Step]) -> None:
        self._backend = backend
        self._script = script
        self._ended = False
        self._closed = False

    async def chunks(self) -> AsyncIterator[bytes]:
        for step in self._script:
            if isinstance(step, bytes):
                yield step
            else:
                await _wait_or_raise(step, self._backend.name)
        self._ended = True

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        backend = self._backend
        backend.open -= 1
        backend.finished += self._ended
        backend.aborted += not self._ended
        backend.closed.set()


async def _wait_or_raise(step: asyncio.Event | BaseException, backend: str = "") -> None:
    if isinstance(step, asyncio.Event):
        await step.wait()
        return
    if isinstance(step, BackendError):
        step.backend = step.backend or backend
    raise step
