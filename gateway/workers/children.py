"""Forked processes: begun clean, ended with their parent, reaped with an exit code.

Neighbour: supervisor.py, which decides when. Only for a process without threads and event loops.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

_PR_SET_PDEATHSIG = 1

Mask = set[int | signal.Signals]

logger = logging.getLogger("upshift")


def fork(run: Callable[[], int], mask: Mask, deaf_to: Sequence[signal.Signals]) -> int:
    """The pid of a child that does `run`, exits with what it returns, and never outlives this process.

    The caller has blocked its signals; `mask` is what the child gets instead, once it does nothing at those of
    `deaf_to`. Raises OSError.
    """
    _flush()
    supervisor = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    exit_code = 1
    try:
        _end_with(supervisor)
        for number in deaf_to:
            # A handler and not SIG_IGN, which an engine would inherit.
            signal.signal(number, _ignore)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        exit_code = run()
    except BaseException:
        logger.critical("a process failed unexpectedly", exc_info=True)
        raise
    finally:
        # Whatever happens, the child must not return: it would go on as a second supervisor.
        try:
            _flush()
        finally:
            os._exit(exit_code)


def _flush() -> None:
    """What is buffered at a fork would be written twice, and at os._exit not at all."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # its reader may have gone
            stream.flush()


def _ignore(_number: int, _frame: object) -> None:
    pass


def _end_with(supervisor: int) -> None:
    """SIGKILL for this process at the moment when its parent is gone, however it went."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != supervisor:
        os.kill(os.getpid(), signal.SIGKILL)


def ended() -> Iterator[tuple[int, int]]:
    """(pid, exit code) of every child that has ended; negative for a signal, as in subprocess."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


def signal_child(pid: int | None, number: signal.Signals) -> None:
    """Never fails for a child: one that has ended is ours until it is reaped."""
    if pid is not None:
        os.kill(pid, number)
