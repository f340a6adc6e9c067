"""What can go wrong between the gateway and one engine.

BackendError
├── BackendUnavailable      nothing was sent: connect refused, no socket, process not ready   (retryable)
│   └── BackendLoading      the engine answers, but its model is still loading                (retryable)
├── BackendOverloaded       the engine refused for now: 429, 503 with a bounded queue full    (retryable)
├── BackendTimeout          the engine did not answer in time                                 (not retryable)
├── BackendProtocolError    it died or spoke nonsense: reset, cut stream, bad framing         (retryable)
├── InvalidRequest          the engine refused the request itself: a 4xx of its own           (not retryable)
│   └── ContextLengthExceeded
└── EngineStartFailed       the launched process ended or never became ready                  (not retryable)

`retryable` says whether another upstream may be tried while the client has seen no byte. The client's status code is
none of this package's business: gateway/errors.py holds the one table.
"""

from __future__ import annotations

import re
from typing import Any


class BackendError(Exception):
    """Base of everything in this module. `backend` is the configured name of the engine, for logs and metrics."""

    retryable = False

    def __init__(self, message: str, *, backend: str = "", retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.backend = backend
        self.retry_after_seconds = retry_after_seconds


class BackendUnavailable(BackendError):
    """No byte of the request reached an engine."""

    retryable = True


class BackendLoading(BackendUnavailable):
    """The engine is up, its model is not. `progress` runs from 0.0 to 1.0."""

    def __init__(self, message: str, *, backend: str = "", progress: float = 0.0) -> None:
        super().__init__(message, backend=backend, retry_after_seconds=1.0)
        self.progress = progress


class BackendOverloaded(BackendError):
    """The engine's own bounded queue is full."""

    retryable = True


class BackendTimeout(BackendError):
    """No answer within the time allowed; the engine may still be computing, so nobody else is asked."""


class BackendProtocolError(BackendError):
    """The connection broke, or what came back was not HTTP, JSON or SSE as agreed."""

    retryable = True


class InvalidRequest(BackendError):
    """The engine refused the request. `param` names the field where known; `code` is the OpenAI error code."""

    code = "invalid_request"

    def __init__(self, message: str, *, backend: str = "", param: str | None = None) -> None:
        super().__init__(message, backend=backend)
        self.param = param


class ContextLengthExceeded(InvalidRequest):
    """Prompt plus answer do not fit the model's context."""

    code = "context_length_exceeded"


class EngineStartFailed(BackendError):
    """A launched engine ended during its start. The message is the cause in one line."""


_KIND = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def shown_kind(*told: Any) -> str:
    """` (InternalServerError)`: the first of what an engine calls its error that is a mere name, empty without one. Its
    own words may hold the prompt that it stumbled over, or what is nobody's business."""
    return next((f" ({kind})" for kind in told if isinstance(kind, str) and _KIND.fullmatch(kind)), "")
