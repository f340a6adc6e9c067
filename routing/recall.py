"""Requests that one kind of engine was sent and has not begun to answer go along when their model moves to the other.

Of 32 that come at once the first find a quiet model. Left behind, they would wait for each other in the slower engine,
and where both compute on the same cores hold up everybody else in the faster one. Neighbours: router.py (sends through
this), lane.py (knows when the model moves).
"""

from __future__ import annotations

import asyncio
from time import perf_counter

from backends.base import BackendResponse, InferenceRequest
from routing.upstream import Upstream

# Nobody can see how far an answer in one piece has come. One of this share of the usual age is as good as new.
_NEW = 0.1


class Recalled(Exception):
    """Not a failure: the request is to be routed again."""


class _Sent:
    """A request on its way; `cancellations` are those that its task had when it was sent."""

    __slots__ = ("at", "cancellations", "recalled", "stream", "upstream")

    def __init__(self, upstream: Upstream, task: asyncio.Task[object], *, stream: bool) -> None:
        self.upstream = upstream
        self.stream = stream
        self.at = perf_counter()
        self.cancellations = task.cancelling()
        self.recalled = False

    def has_begun(self, now: float) -> bool:
        """Whether work would be lost. A stream that has is not waited for any more."""
        return not self.stream and now - self.at > _NEW * (self.upstream.pace.service_seconds or 0.0)


class Recalls:
    """The requests of one model that may be called back. Belongs to the event loop."""

    def __init__(self) -> None:
        self._sent: dict[asyncio.Task[object], _Sent] = {}

    async def send(self, upstream: Upstream, request: InferenceRequest) -> BackendResponse:
        """As the backend's own. Raises Recalled, too; then the engine has been told that nobody waits."""
        task = asyncio.current_task()
        if task is None:
            raise AssertionError("a coroutine runs in a task")
        self._sent[task] = sent = _Sent(upstream, task, stream=request.stream)
        try:
            return await upstream.backend.send(request)
        except BaseException as error:
            # Its client may have left at the same moment: then that counts.
            if sent.recalled and task.uncancel() <= sent.cancellations and isinstance(error, asyncio.CancelledError):
                raise Recalled from None
            raise
        finally:
            del self._sent[task]

    def call(self, kind: str, room: float) -> None:
        """Calls back as many as there is `room` for at upstreams of `kind`, where their model is now; the latest first,
        for the others will be answered sooner."""
        now = perf_counter()
        for task, sent in reversed(self._sent.items()):
            if room < 1:
                return
            if sent.upstream.kind != kind and not sent.recalled and not sent.has_begun(now):
                sent.recalled = True
                task.cancel()
                room -= 1
