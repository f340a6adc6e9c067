"""The parent of everything: forks the keeper and the workers, replaces a worker that ends unasked, ends all in order.

It never runs an event loop nor a thread, so that it can fork at any time; what the processes do is handed in.
Neighbours: children.py (how), start.py (hands in what), keeper.py and worker.py (what is done).
"""

from __future__ import annotations

import gc
import logging
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from math import inf

from backends.output import cause
from gateway.lastcall import admit_no_more
from gateway.reload import terminal_is_gone
from gateway.workers.children import Mask, ended, fork, signal_child
from gateway.workers.delays import Delays

# What a worker ends with before it served: in its first life, it would every time.
CANNOT_START = 3
# The keeper's exit code when none of its models can be loaded, which it has said itself.
HOPELESS = 4
# What the keeper is told when it shall end the engines.
END = b"end"
# A worker that has not ended so long after the drain, or a keeper so long after it was told, is killed.
GRACE_SECONDS = 15.0
# The same after a second signal.
HASTY_SECONDS = 2.0

_STOP = (signal.SIGTERM, signal.SIGINT)
_AWAITED = (*_STOP, signal.SIGCHLD, signal.SIGHUP)

logger = logging.getLogger("upshift")

Keep = Callable[[socket.socket], int]
Work = Callable[[int, Sequence[socket.socket], socket.socket], int]


@dataclass(slots=True)
class _Worker:
    """One place among the workers. Its sockets outlive the process: what connects meanwhile waits in their queue."""

    index: int
    listeners: Sequence[socket.socket]
    lasting: Sequence[socket.socket] = ()
    delays: Delays = field(default_factory=Delays)
    lives: int = 0
    pid: int | None = None
    started_at: float = 0.0
    due_at: float = 0.0

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """All that it listens on."""
        return (*self.listeners, *self.lasting)


class _Phase(Enum):
    SERVING = auto()
    DRAINING = auto()
    """Workers finish their answers."""
    STOPPING = auto()
    """Workers are gone, the keeper ends the engines."""


class Supervisor:
    """Lives for one `run`. Owns the sockets it is given; those of `lasting` are not closed when the drain
    begins, but when a worker closes them. The drain begins `drain_delay_seconds` after the workers were told to end.

    `keep(control)` runs in the keeper and `work(index, listeners, channel)` in each worker, both until told to end;
    what they return is the exit code. Over `control` the keeper gets each worker's index and channel, and END at last;
    a worker is told by SIGTERM, or SIGQUIT when it shall not wait. `lost(index)` is called here, in the parent, each
    time a worker has ended and before its place is taken again: whatever it held for its index can be given back.
    """

    def __init__(
        self,
        listeners: Sequence[Sequence[socket.socket]],
        lasting: Sequence[Sequence[socket.socket]] = (),
        *,
        keep: Keep,
        work: Work,
        lost: Callable[[int], None],
        drain_seconds: float,
        drain_delay_seconds: float = 0.0,
    ) -> None:
        self._keep = keep
        self._work = work
        self._lost = lost
        self._drain_seconds = drain_seconds
        self._drain_delay_seconds = drain_delay_seconds
        # Children:
        self._workers = [
            _Worker(index, mine, lasting[index] if lasting else ()) for index, mine in enumerate(listeners)
        ]
        self._keeper: int | None = None
        self._control, self._keepers_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # On the way out:
        self._phase = _Phase.SERVING
        self._closing_at: float | None = None
        self._deadline: float | None = None
        self._hasty = False
        self._exit_code = 0

    def run(self) -> int:
        """Returns when no child is left: 0 after a drain, 1 when it was cut short or not asked for."""
        # Signals are taken one by one in _wait, and never between a fork and the handlers of the child.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)
        # The children share these pages as long as nobody's collector writes to them.
        gc.collect()
        gc.freeze()
        try:
            self._start_keeper(before)
            while self._keeper is not None or self._running():
                self._start_due(before)
                self._wait()
                self._reap()
                self._advance()
        finally:
            self._kill()
            self._control.close()
            while signal.sigtimedwait(_AWAITED, 0) is not None:
                pass
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return self._exit_code

    def _running(self) -> list[_Worker]:
        return [worker for worker in self._workers if worker.pid is not None]

    # -- what happens --------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        """Until a child ends, a signal comes, a start or the deadline is due."""
        due = [worker.due_at for worker in self._workers if worker.pid is None and self._phase is _Phase.SERVING]
        due += [moment for moment in (self._closing_at, self._deadline) if moment is not None]
        patience_seconds = max(min(due, default=inf) - time.monotonic(), 0.0)
        caught = signal.sigtimedwait(_AWAITED, min(patience_seconds, 3600.0))
        if caught is None:
            return
        if caught.si_signo in _STOP or (caught.si_signo == signal.SIGHUP and terminal_is_gone()):
            self._on_stop()
        elif caught.si_signo == signal.SIGHUP and self._phase is _Phase.SERVING:
            for pid in (self._keeper, *(worker.pid for worker in self._running())):
                signal_child(pid, signal.SIGHUP)

    def _on_stop(self) -> None:
        if self._phase is _Phase.SERVING:
            logger.info(
                "stopping: running answers have %g s to finish; a second signal stops at once", self._drain_seconds
            )
            self._drain(self._drain_delay_seconds)
            return
        self._close()
        self._hasty = True
        self._exit_code = 1
        self._deadline = time.monotonic() + HASTY_SECONDS
        for worker in self._running():
            signal_child(worker.pid, signal.SIGQUIT)

    def _reap(self) -> None:
        for pid, exit_code in ended():
            if pid == self._keeper:
                self._on_keeper_ended(exit_code)
            for worker in self._workers:
                if worker.pid == pid:
                    self._on_worker_ended(worker, exit_code)

    def _on_keeper_ended(self, exit_code: int) -> None:
        self._keeper = None
        if self._phase is _Phase.STOPPING:
            return
        # No engine is left: what still runs can only end with an error, and a new keeper would not be theirs.
        if exit_code != HOPELESS:
            logger.error("the keeper of the engines %s: stopping", cause(exit_code, ()))
        self._exit_code = 1
        self._drain()

    def _on_worker_ended(self, worker: _Worker, exit_code: int) -> None:
        worker.pid = None
        self._lost(worker.index)
        if self._phase is not _Phase.SERVING:
            # SIGTERM ends one that was not yet serving.
            if exit_code not in (0, -signal.SIGTERM):
                logger.error("worker %d %s while it was draining", worker.index, cause(exit_code, ()))
                self._exit_code = 1
        elif exit_code == CANNOT_START and worker.lives == 1:
            logger.error("worker %d cannot start: stopping", worker.index)
            self._exit_code = 1
            self._drain()
        else:
            now = time.monotonic()
            delay_seconds = worker.delays.after(now - worker.started_at)
            worker.due_at = now + delay_seconds
            logger.warning("worker %d %s; next start in %g s", worker.index, cause(exit_code, ()), delay_seconds)

    def _drain(self, delay_seconds: float = 0.0) -> None:
        self._phase = _Phase.DRAINING
        self._closing_at = time.monotonic() + delay_seconds
        self._deadline = self._closing_at + self._drain_seconds + GRACE_SECONDS
        if not delay_seconds:
            self._close()
        for worker in self._workers:
            signal_child(worker.pid, signal.SIGTERM)

    def _close(self) -> None:
        """Before the workers do: what connects after them shall be refused and not wait for nobody."""
        self._closing_at = None
        for worker in self._workers:
            admit_no_more(worker.listeners)
            for listener in worker.sockets:
                listener.close()

    def _advance(self) -> None:
        """What follows from who is left and what time it is."""
        now = time.monotonic()
        if self._closing_at is not None and now >= self._closing_at:
            self._close()
        if self._deadline is not None and now >= self._deadline:
            logger.error("killing what has not ended in time")
            self._exit_code = 1
            self._deadline = None
            self._kill()
        if self._phase is _Phase.DRAINING and not self._running():
            self._phase = _Phase.STOPPING
            self._deadline = time.monotonic() + GRACE_SECONDS
            with suppress(OSError):  # there may be no keeper any more
                self._control.send(END)
        if self._phase is _Phase.STOPPING and self._hasty:
            signal_child(self._keeper, signal.SIGKILL)  # the engines end by themselves when it is gone

    def _kill(self) -> None:
        for pid in (self._keeper, *(worker.pid for worker in self._workers)):
            signal_child(pid, signal.SIGKILL)

    # -- children ------------------------------------------------------------------------------------------------

    def _start_keeper(self, mask: Mask) -> None:
        def run() -> int:
            for worker in self._workers:
                for listener in worker.sockets:
                    listener.close()
            self._control.close()
            return self._keep(self._keepers_control)

        self._keeper = fork(run, mask, deaf_to=(*_STOP, signal.SIGHUP))
        self._keepers_control.close()

    def _start_due(self, mask: Mask) -> None:
        now = time.monotonic()
        for worker in self._workers:
            if self._phase is _Phase.SERVING and worker.pid is None and worker.due_at <= now:
                self._start(worker, mask)

    def _start(self, worker: _Worker, mask: Mask) -> None:
        keepers_end, workers_end = socket.socketpair()

        def run() -> int:
            for other in self._workers:
                if other is not worker:
                    for listener in other.sockets:
                        listener.close()
            self._control.close()
            keepers_end.close()
            return self._work(worker.index, worker.sockets, workers_end)

        with keepers_end, workers_end:
            worker.started_at = time.monotonic()
            try:
                # First, so that the keeper never hears of a worker that it cannot reach.
                socket.send_fds(self._control, [b"%d" % worker.index], [keepers_end.fileno()])
                # A terminal's Ctrl-C reaches the whole group; it is the supervisor's to pass on.
                worker.pid = fork(run, mask, deaf_to=(signal.SIGINT, signal.SIGHUP))
                worker.lives += 1
            except OSError as error:  # no memory or no process left, or no keeper, whose end will be seen
                worker.due_at = worker.started_at + worker.delays.after(0.0)
                logger.error("worker %d could not be started: %s", worker.index, error.strerror)
