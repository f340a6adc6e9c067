"""The guard, with real processes: whatever happens to it, to the command or to who started it, nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import pytest

from backends.segments import NOTES, remove
from backends.vllm import guard
from tests.e2e.gateway import children_of
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
        process_group=0,
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


# Makes what vLLM's processes make, prints what it is called, and is killed; so is what Python has to clean up with.
MAKES = """
import multiprocessing, os, socket, sys
from multiprocessing import resource_tracker, shared_memory
memory = shared_memory.SharedMemory(create=True, size=4096)
lock = multiprocessing.get_context("spawn").Lock()
os.kill(resource_tracker._resource_tracker._pid, 9)
between = socket.socket(socket.AF_UNIX)
between.bind(os.environ["VLLM_RPC_BASE_PATH"] + "/5f1ce0d1")
print("/dev/shm/" + memory.name, "/dev/shm/sem." + lock._semlock.name.strip("/"), between.getsockname(), flush=True)
sys.stdin = open("/dev/null")
import time
time.sleep(600)
"""


@pytest.fixture
def leaving(socket: Path) -> Iterator[tuple[Guarded, list[Path]]]:
    """A guard over a process that leaves files behind when it is killed, and these."""
    process = start(f"exec {sys.executable} -c '{MAKES}'", socket)
    assert process.stdout is not None
    yield process, [Path(name) for name in process.stdout.readline().split()]
    process.kill()
    process.communicate(timeout=30)


@pytest.fixture
def theirs() -> Iterator[Path]:
    """Shared memory of somebody else, made while the guard looks."""
    memory = SharedMemory(create=True, size=4096)
    yield Path("/dev/shm", memory.name)
    memory.close()
    memory.unlink()


def test_what_a_killed_command_leaves_in_files_is_removed(
    leaving: tuple[Guarded, list[Path]], theirs: Path, socket: Path
) -> None:
    process, files = leaving
    assert [file.exists() for file in files] == [True] * 3
    notes = socket.parent / NOTES
    wait_for(lambda: notes.exists() and len(notes.read_text().split()) == 2)
    (command,) = children_of(process.pid)
    os.kill(command, signal.SIGKILL)
    assert process.wait(timeout=30) == -signal.SIGKILL
    assert [file.exists() for file in files] == [False] * 3
    assert theirs.exists()
    assert [path.name for path in socket.parent.iterdir()] == [socket.name]


def test_what_it_leaves_when_nobody_holds_its_stdin_is_removed_at_once(
    leaving: tuple[Guarded, list[Path]], theirs: Path, socket: Path
) -> None:
    process, files = leaving
    assert process.stdin is not None
    process.stdin.close()
    process.wait(timeout=30)
    process.stdin = None
    assert [file.exists() for file in files] == [False] * 3
    assert theirs.exists()
    assert not socket.parent.exists()


def test_what_is_left_when_the_guard_is_killed_is_known(
    leaving: tuple[Guarded, list[Path]], theirs: Path, socket: Path
) -> None:
    process, files = leaving
    notes = socket.parent / NOTES
    wait_for(lambda: notes.exists() and len(notes.read_text().split()) == 2)
    process.kill()
    process.wait(timeout=30)
    remove(notes, group=process.pid)
    assert [file.exists() for file in files[:2]] == [False] * 2
    assert theirs.exists()
    again = start("ls -A $VLLM_RPC_BASE_PATH | wc -l", socket)
    assert line(again) == 0
    assert again.wait(timeout=30) == 0
    again.communicate()
    assert not files[2].parent.exists()


def test_a_place_of_the_users_own_for_the_sockets_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", str(tmp_path))
    process = start("test $VLLM_RPC_BASE_PATH = " + str(tmp_path))
    assert process.wait(timeout=30) == 0
    process.communicate()
