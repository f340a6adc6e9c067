"""The guard, with real processes: whatever happens to it, to the command or to who started it, nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.vllm import guard
from tests.engine import is_alive, wait_for

# A grandchild in a session of its own, that would outlive any signal to the group; it prints its pid.
CHILD = "setsid sh -c 'echo $$; exec sleep 600' & "

Guarded = subprocess.Popen[str]


def start(script: str, socket: Path = Path("/nonexistent/e.sock")) -> Guarded:
    command = [sys.executable, "-I", "-S", guard.__file__, str(socket), "sh", "-c", script]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def line(process: Guarded) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    """Where the command would listen, in a folder of its own."""
    (tmp_path / "private").mkdir()
    path = tmp_path / "private" / "e.sock"
    path.touch()
    return path


@pytest.fixture
def guarded(socket: Path) -> Iterator[Guarded]:
    """A guard over a shell and its grandchild, both running."""
    process = start(CHILD + "echo $$; wait", socket)
    yield process
    process.kill()
    process.communicate(timeout=30)


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", -9), ("kill -11 $$", -11), ("kill -15 $$", -15)]
)
def test_it_ends_as_the_command_ended(script: str, code: int) -> None:
    process = start(script)
    assert process.wait(timeout=30) == code
    process.communicate()


def test_what_the_command_leaves_behind_is_ended(guarded: Guarded, socket: Path) -> None:
    pids = [line(guarded), line(guarded)]
    os.kill(min(pids), signal.SIGKILL)
    assert guarded.wait(timeout=30) == -signal.SIGKILL
    wait_for(lambda: not any(is_alive(pid) for pid in pids))
    assert socket.exists(), "who started it is there and may start it again"


def test_it_ends_everything_when_nobody_holds_its_stdin(guarded: Guarded, socket: Path) -> None:
    pids = [line(guarded), line(guarded)]
    assert guarded.stdin is not None
    guarded.stdin.close()
    assert guarded.wait(timeout=30) == -signal.SIGKILL
    wait_for(lambda: not any(is_alive(pid) for pid in pids))
    guarded.stdin = None
    assert not socket.parent.exists()


def test_sigterm_is_for_the_command_to_obey() -> None:
    process = start("trap 'echo 1; exit 3' TERM; echo 0; while :; do sleep 0.01; done")
    assert line(process) == 0
    process.terminate()
    assert process.wait(timeout=30) == 3
    assert line(process) == 1
    process.communicate(timeout=30)


def test_a_killed_guard_takes_the_command_along() -> None:
    process = start("echo $$; exec sleep 600")
    command = line(process)
    process.kill()
    wait_for(lambda: not is_alive(command))
    process.communicate(timeout=30)


def test_a_command_that_cannot_be_run_is_named() -> None:
    command = [sys.executable, "-I", "-S", guard.__file__, "/e.sock", "/nonexistent/python", "-m", "vllm"]
    ended = subprocess.run(command, stdin=subprocess.PIPE, capture_output=True, text=True, timeout=30, check=False)
    assert (ended.returncode, ended.stderr) == (127, "/nonexistent/python cannot be run: No such file or directory\n")
