"""A conversation with one private engine, through the same seam that the gateway uses.

The engine's event loop has a thread of its own: it goes on watching the engine while the terminal waits for a line.
Neighbours: run.py (the terminal).
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from types import TracebackType
from typing import Any, TypeVar

from backends.base import Backend, BackendState, InferenceRequest, Operation
from backends.errors import BackendError

_POLL_SECONDS = 0.05
_CLEANUP_SECONDS = 5.0

T = TypeVar("T")


class ChatFailed(Exception):
    """The engine could not start or could not answer. The message is for the person at the terminal."""


class LoopThread:
    """An event loop in a thread, for code that blocks on a terminal. Use as a context manager."""

    def __enter__(self) -> LoopThread:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine-loop", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs it in the loop and waits. KeyboardInterrupt cancels it, lets it clean up, and is raised again."""
        ended = threading.Event()
        task: asyncio.Task[Any] | None = None
        interrupted = False

        async def run() -> T:
            nonlocal task
            task = asyncio.current_task()
            try:
                if interrupted:
                    raise asyncio.CancelledError
                return await coroutine
            finally:
                coroutine.close()
                ended.set()

        try:
            return asyncio.run_coroutine_threadsafe(run(), self._loop).result()
        except KeyboardInterrupt:
            # It may arrive before the call has begun, and before we hold its future: the task is what can be cancelled.
            interrupted = True
            if task is not None:
                self._loop.call_soon_threadsafe(task.cancel)
                ended.wait(_CLEANUP_SECONDS)
            raise


class Chat:
    """One conversation: its messages so far, and the backend that answers. `close` stops the backend."""

    def __init__(self, backend: Backend, model: str, system: str | None, temperature: float = 1.0) -> None:
        self._backend = backend
        self._model = model
        self._temperature = temperature
        self._opening = [{"role": "system", "content": system}] if system else []
        self._messages = list(self._opening)

    async def start(self, report: Callable[[float], None]) -> None:
        """Returns when the engine is ready; `report` hears the progress, 0 to 1. Raises ChatFailed."""
        await self._backend.start()
        while self._backend.state is not BackendState.READY:
            if self._backend.state is BackendState.FAILED:
                raise ChatFailed(getattr(self._backend, "failure", "") or "the engine ended while it started")
            report(float(getattr(self._backend, "progress", 0.0)))
            await asyncio.sleep(_POLL_SECONDS)

    async def close(self) -> None:
        """Stops the engine."""
        await self._backend.stop()

    def clear(self) -> None:
        """Forgets everything but the system message."""
        self._messages = list(self._opening)

    async def ask(self, text: str, write: Callable[[str], None]) -> None:
        """Writes the answer piece by piece. What was written stays in the conversation, also after a cancellation;
        a question without any answer is forgotten. Raises ChatFailed."""
        question = {"role": "user", "content": text}
        messages = [*self._messages, question]
        wanted = {"model": self._model, "messages": messages, "stream": True, "temperature": self._temperature}
        body = json.dumps(wanted).encode()
        pieces: list[str] = []
        try:
            response = await self._backend.send(InferenceRequest(Operation.CHAT, self._model, body, True, "run"))
            try:
                async for piece in read_deltas(response.chunks):
                    pieces.append(piece)
                    write(piece)
            finally:
                response.close()
        except BackendError as error:
            raise ChatFailed(error.message) from error
        finally:
            if pieces:
                self._messages += [question, {"role": "assistant", "content": "".join(pieces)}]


async def read_deltas(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The text of a chat stream, as it comes. Raises ChatFailed for an error event or a stream without its end."""
    rest = b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            data = line.strip().removeprefix(b"data:").strip() if line.startswith(b"data:") else b""
            if data == b"[DONE]":
                return
            text = _delta(data) if data else ""
            if text:
                yield text
    raise ChatFailed("the engine ended in the middle of its answer")


def _delta(data: bytes) -> str:
    event = json.loads(data)
    if "error" in event:
        raise ChatFailed(str(event["error"].get("message", "the engine failed")))
    choices = event.get("choices") or [{}]
    return str(choices[0].get("delta", {}).get("content") or "")
