"""Real processes and real signals, but nothing inside them: who is started, told, replaced and killed when."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from gateway.workers.delays import MAX_DELAY_SECONDS, STEADY_SECONDS, Delays
from tests.engine import is_alive, wait_for
from tests.gateway.workers.family import DELAY_SECONDS


class Family:
    """A supervisor of two workers with their keeper. `told` is what it has said so far."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.told: list[str] = []

    def next(self, beginning: str) -> list[str]:
        """The words of the next line that begins so, without them."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.told.append(line.strip())
            if line.startswith(beginning):
                return line.removeprefix(beginning).split()
        raise AssertionError(f"{beginning!r} was not said: {self.told}")

    def started(self) -> list[int]:
        """Pids of the keeper and both workers, once all three are there."""
        said = sorted(self.next("") for _ in range(3))
        assert [words[:-1] for words in said] == [["keeper"], ["worker", "0"], ["worker", "1"]]
        return [int(words[-1]) for words in said]

    def ended(self) -> int:
        """The exit code, after everything that is left to say."""
        rest, _ = self.process.communicate(timeout=20)
        self.told += rest.splitlines()
        return self.process.returncode


@contextmanager
def family(*modes: str) -> Iterator[Family]:
    command = [sys.executable, "-m", "tests.gateway.workers.family", *modes]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        alarm = threading.Timer(30, process.kill)
        alarm.start()
        try:
            yield Family(process)
        finally:
            alarm.cancel()
            process.kill()


def to_supervisor(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)


def to_everybody(pid: int) -> None:
    """As a terminal does with Ctrl-C."""
    os.killpg(pid, signal.SIGINT)


@pytest.mark.parametrize("stop", [to_supervisor, to_everybody])
def test_one_signal_ends_workers_and_then_the_keeper(stop: Callable[[int], None]) -> None:
    with family() as running:
        pids = running.started()
        stop(running.process.pid)
        assert running.ended() == 0
        assert sorted(running.told[-3:-1]) == ["lost 0", "lost 1"]
        assert running.told[-1] == "keeper told to end"
        assert not any(map(is_alive, pids))


def test_worker_that_ends_is_replaced_after_its_index_was_given_back() -> None:
    with family() as running:
        keeper, other, victim = running.started()
        os.kill(victim, signal.SIGKILL)
        [index, successor] = running.next("worker")
        assert index == "1"
        assert running.told[-2] == "lost 1"
        assert is_alive(keeper)
        assert is_alive(other)
        running.process.terminate()
        assert running.ended() == 0
        assert not is_alive(int(successor))


@pytest.mark.parametrize("mode", ["cannot-start", "hopeless"])
def test_what_would_fail_for_ever_ends_everything(mode: str) -> None:
    with family(mode) as running:
        assert running.ended() == 1
        assert "lost 0" in running.told


def test_lost_keeper_ends_everything() -> None:
    with family() as running:
        keeper, *workers = running.started()
        os.kill(keeper, signal.SIGKILL)
        assert running.ended() == 1
        assert not any(map(is_alive, workers))


def test_second_signal_does_not_wait_for_workers() -> None:
    with family("deaf") as running:
        pids = running.started()
        for _ in range(2):
            running.process.send_signal(signal.SIGTERM)
            wait_for(lambda: not pending(running.process.pid, signal.SIGTERM))
        assert running.ended() == 1
        assert not any(map(is_alive, pids))


def test_nobody_is_kept_out_before_the_delay_is_over() -> None:
    with family("deaf", "delayed") as running:
        (port,) = running.next("port")
        running.started()
        ended_at = time.monotonic()
        running.process.terminate()
        wait_for(lambda: not pending(running.process.pid, signal.SIGTERM))
        wait_for(lambda: not gets_in(int(port)))
        assert time.monotonic() - ended_at >= DELAY_SECONDS
        running.process.terminate()
        assert running.ended() == 1


def test_worker_that_does_not_end_is_killed() -> None:
    with family("deaf", "impatient") as running:
        running.started()
        running.process.terminate()
        assert running.ended() == 1


def test_killed_supervisor_takes_everybody_along() -> None:
    with family() as running:
        pids = running.started()
        running.process.kill()
        wait_for(lambda: not any(map(is_alive, pids)))


def test_delay_doubles_until_a_worker_has_lasted() -> None:
    delays = Delays()
    assert [delays.after(1.0) for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, MAX_DELAY_SECONDS]
    assert [delays.after(STEADY_SECONDS), delays.after(1.0)] == [0.1, 0.2]


def gets_in(port: int) -> bool:
    """Whether the kernel accepts a connection there; it drops the attempts of those who are kept out."""
    with socket.socket() as probe:
        probe.settimeout(0.3)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def pending(pid: int, number: signal.Signals) -> bool:
    """Whether a signal waits to be taken. Two that are sent at once would be one."""
    with open(f"/proc/{pid}/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return bool(int(fields["ShdPnd"], 16) >> (number - 1) & 1)
