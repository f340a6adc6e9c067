"""The seam every engine stands behind: one request shape, one response shape, one Protocol.

Neighbours: errors.py (what may be raised), http.py and openai.py (the implementation for OpenAI endpoints).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol


class Operation(StrEnum):
    """What the client asks for; the value is the metric label."""

    CHAT = "chat"
    COMPLETION = "completion"


class BackendState(StrEnum):
    """Life of an engine. One that runs elsewhere is STARTING, READY or FAILED as it says; STOPPED: nobody looks."""

    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"


class InferenceRequest(NamedTuple):
    """One inference call. `body` is the client's JSON as bytes, forwarded as it is; the other fields are the decoded
    envelope, which is all the gateway ever looks at. `include_usage` is what it asks of a stream, `hides_usage` that
    the client did not. `max_output_tokens` is for each of `choices` answers, None where the client set no bound.
    `features` are what its fields need that not every engine has: "tools", "logprobs", "structured_output",
    "guided_decoding", "images"."""

    operation: Operation
    model: str
    body: bytes
    stream: bool
    request_id: str
    include_usage: bool = False
    max_output_tokens: int | None = None
    choices: int = 1
    headers: tuple[tuple[bytes, bytes], ...] = ()
    features: frozenset[str] = frozenset()
    hides_usage: bool = False


@dataclass(slots=True)
class Usage:
    """Token counts as the engine reported them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0


@dataclass(slots=True)
class BackendResponse:
    """A response whose status and headers have arrived. Owns the upstream connection: `close()` must be called, which
    returns or aborts it (an abort stops the engine's computing). `chunks` yields body bytes as they were read;
    `content_bytes` is how many were announced, None where the engine did not say. Its other headers end here. A body
    that came whole with the headers is in `body`, and in no chunk. Closing is idempotent; afterwards nothing of the
    request is left, neither here nor in the engine."""

    status: int
    content_type: bytes
    content_bytes: int | None
    chunks: AsyncIterator[bytes]
    close: Callable[[], None] = field(repr=False)
    body: bytes | None = None


class Backend(Protocol):
    """One engine that can be called. Implementations: OpenAIBackend; fakes in tests."""

    @property
    def name(self) -> str:
        """The kind of engine, such as "gguf": `x-upshift-backend` and the `backend` metric label."""

    @property
    def state(self) -> BackendState:
        """Whether a call makes sense now."""

    async def send(self, request: InferenceRequest) -> BackendResponse:
        """Returns once status and headers exist and the status is 200. Raises BackendError before that; another answer
        of the engine is raised as the error that it means. Cancelling the call aborts the engine's work."""

    async def start(self) -> None:
        """Brings the engine up in the background where it is ours; returns at once."""

    async def stop(self) -> None:
        """Drains and ends what `start` began. Idempotent."""
