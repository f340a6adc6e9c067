"""A supervisor with children that do nothing but wait, for test_supervisor.py.

    python -m tests.gateway.workers.family [cannot-start] [hopeless] [deaf] [impatient] [delayed]

Every line on stdout is something that happened: "keeper PID", "worker INDEX PID", "lost INDEX", "keeper told to end".
Where the drain is delayed, for DELAY_SECONDS, "port PORT" comes first.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence

from gateway.workers.supervisor import CANNOT_START, END, GRACE_SECONDS, HOPELESS, Supervisor

MODES = sys.argv[1:]
DELAY_SECONDS = 2.0


def keep(control: socket.socket) -> int:
    say("keeper", os.getpid())
    channels: list[int] = []
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 64, 1)
        if message == END:
            say("keeper told to end")
            return 0
        channels += descriptors
        if "hopeless" in MODES and message == b"1":
            return HOPELESS


def work(index: int, listeners: Sequence[socket.socket], channel: socket.socket) -> int:
    if "cannot-start" in MODES and index == 1:
        return CANNOT_START
    signals = {signal.SIGTERM, signal.SIGQUIT}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    say("worker", index, os.getpid())
    while signal.sigwait(signals) == signal.SIGTERM and "deaf" in MODES:
        pass
    return 0


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def main() -> int:
    # Nobody accepts: room for all that a test connects.
    listeners = [[socket.create_server(("127.0.0.1", 0), backlog=4096)] for _ in range(2)]
    # Where nobody listens to signals, what is killed after the grace is killed at once.
    drain_seconds = -GRACE_SECONDS if "impatient" in MODES else 30.0
    delay_seconds = DELAY_SECONDS if "delayed" in MODES else 0.0
    if delay_seconds:
        say("port", listeners[0][0].getsockname()[1])
    supervisor = Supervisor(
        listeners,
        keep=keep,
        work=work,
        lost=lambda index: say("lost", index),
        drain_seconds=drain_seconds,
        drain_delay_seconds=delay_seconds,
    )
    return supervisor.run()


if __name__ == "__main__":
    sys.exit(main())
