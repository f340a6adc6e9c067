"""Ends a request's waiting when its client leaves or a deadline passes, by cancelling the task that waits.

One timer and one small task per request, however many phases and chunks it has: moving the deadline on is a plain
assignment, and the timer looks at it only when it fires. Neighbours: relay.py (the only user).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.errors import ClientGone
from gateway.intake import Receive


class Watch:
    """Made inside the task it may cancel. After a CancelledError there, `verdict` says why; None means that somebody
    else cancelled. `close()` must be called at the end."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - ASGI servers run every request in a task
        self._task = task
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0
        self._seconds = 0.0
        self._too_late: Callable[[], Exception] = TimeoutError
        self._listener: asyncio.Task[None] | None = None
        self.verdict: Exception | None = None

    def expect(self, seconds: float, too_late: Callable[[], Exception]) -> None:
        """From now on something has to happen every `seconds`, or the verdict is what `too_late` makes."""
        self._seconds = seconds
        self._too_late = too_late
        self._deadline = self._loop.time() + seconds
        if self._timer is None or self._timer.when() > self._deadline:
            self._arm()

    def progress(self) -> None:
        """Something happened: the deadline moves on by as much as was last expected."""
        self._deadline = self._loop.time() + self._seconds

    def listen(self, receive: Receive) -> None:
        """Reads `receive` from now on, for the client's leaving. The body must have been read."""
        self._listener = self._loop.create_task(self._until_disconnect(receive))

    def stop_listening(self) -> None:
        """To be called before the last piece of an answer: servers report a complete answer as a disconnect, too. The
        deadline stays."""
        if self._listener is not None:
            self._listener.cancel()
            self._listener = None

    def close(self) -> None:
        """Stops watching. Idempotent."""
        self.stop_listening()
        # Usually a bound method of whoever owns this watch: letting go of it spares the garbage collector a cycle.
        self._too_late = TimeoutError
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def recover(self) -> Exception | None:
        """To be called on CancelledError: the verdict, with the cancellation taken back; None where it was not ours."""
        if self.verdict is not None:
            self._task.uncancel()
        return self.verdict

    async def _until_disconnect(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._end(ClientGone("The client left before its answer was complete."))

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(self._deadline, self._look)

    def _look(self) -> None:
        self._timer = None
        if self._loop.time() >= self._deadline:
            self._end(self._too_late())
        else:
            self._arm()

    def _end(self, verdict: Exception) -> None:
        if self.verdict is None:
            self.verdict = verdict
            self._task.cancel()
