"""Runs one command and sees to it that nothing of it is left: `python -I -S guard.py SOCKET COMMAND ...`

vLLM is a tree of processes, and none of them notices that the gateway was killed. This one does: it ends when its stdin
closes, and takes every process below it along, whatever groups they made. SIGTERM and SIGINT are passed on to the
command; its end is this one's end, with the same exit code or by the same signal. What vLLM leaves in files goes with
it: the sockets between its processes, its shared memory, and where nobody else is left to do it, the socket and its
folder. Standard library only: it starts in 30 ms.
Neighbours: child.py (holds the stdin), command.py (puts this in front of vLLM), segments.py (the shared memory).
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":
    # Run as a file, in an interpreter that knows nothing of us.
    sys.path.append(str(Path(__file__).resolve().parents[2]))

from backends.segments import NOTES, Segments, remove

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CANNOT_RUN = 127
_PAUSE_SECONDS = 0.005
# How long shared memory may exist before we know whose it is.
_LOOK_SECONDS = 1
# Below the socket's folder: the sockets between vLLM's processes.
_RPC = "rpc"

_LIBC = ctypes.CDLL(None, use_errno=True)


def main(socket_path: str, command: list[str]) -> int:
    """Runs `command`, which listens at `socket_path`, to its end. Returns its exit code; negative for a signal. The
    socket's folder is for this engine alone."""
    folder = Path(socket_path).parent
    # Orphans below us become our children and not init's: they can be found.
    _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wakes, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(number, lambda *_: None)
    _remove_leavings(folder)  # of a guard before us that was killed
    segments = Segments(folder / NOTES)
    try:
        process = _start(command, folder)
    except OSError as error:
        print(f"{command[0]} cannot be run: {error.strerror}", file=sys.stderr)  # noqa: T201
        _remove_leavings(folder)
        return _CANNOT_RUN
    try:
        code = _attend(process, wakes, segments)
        _look(segments)
    finally:
        _end_all()
        _remove_leavings(folder)
    if code is None:
        _remove(Path(socket_path))
        return -signal.SIGKILL
    return code


def _start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    guard = os.getpid()

    def die_with_guard() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != guard:
            os._exit(1)

    # By itself vLLM has them in /tmp, where those of killed processes stay.
    with suppress(OSError):
        (folder / _RPC).mkdir(mode=0o700)
    environment = {"VLLM_RPC_BASE_PATH": str(folder / _RPC), **os.environ}
    # One thread, so that what runs between fork and exec is safe.
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment, preexec_fn=die_with_guard)  # noqa: PLW1509


def _attend(process: subprocess.Popen[bytes], wakes: int, segments: Segments) -> int | None:
    """Returns when the command has ended, or None at once when nobody holds our stdin any more."""
    poll = select.poll()
    poll.register(sys.stdin, select.POLLIN | select.POLLHUP)
    poll.register(wakes, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll(_LOOK_SECONDS * 1000)}
        if wakes in ready:
            for number in os.read(wakes, 4096):
                if number != signal.SIGCHLD:
                    process.send_signal(number)
        if sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 4096):
            return None
        code = process.poll()
        if code is not None:
            return code
        _reap_adopted(process.pid)
        _look(segments)


def _look(segments: Segments) -> None:
    # A full disk is no reason to end vLLM.
    with suppress(OSError):
        segments.look(lambda: _below(os.getpid()))


def _remove_leavings(folder: Path) -> None:
    with suppress(OSError):
        remove(folder / NOTES)
    shutil.rmtree(folder / _RPC, ignore_errors=True)


def _remove(socket_path: Path) -> None:
    with suppress(OSError):
        socket_path.unlink(missing_ok=True)
        socket_path.parent.rmdir()


def _reap_adopted(command: int) -> None:
    """Whatever has ended but the command, whose end is for Popen to see."""
    with suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid == command:
                return
            os.waitpid(ended.si_pid, 0)


def _end_all() -> None:
    """SIGKILL for every process below this one, until there is none: one that is just being started is seen the next
    time."""
    while pids := _below(os.getpid()):
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        _reap()
        time.sleep(_PAUSE_SECONDS)


def _reap() -> None:
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _below(root: int) -> list[int]:
    """Every process that `root` started, and those that they did."""
    parents = {int(entry.name): _parent(entry) for entry in Path("/proc").iterdir() if entry.name.isdigit()}
    found, new = [], [root]
    while new:
        new = [pid for pid, parent in parents.items() if parent in new]
        found += new
    return found


def _parent(entry: Path) -> int:
    try:
        # The name in between may hold anything, brackets and blanks too.
        return int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _end_like(code: int) -> None:
    """Ends this process by the signal that ended the command, for whoever waits for it. Never returns for code < 0."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # one dump of it is enough
        with suppress(OSError):  # SIGKILL cannot be set to what it is anyway
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)


if __name__ == "__main__":
    exit_code = main(sys.argv[1], sys.argv[2:])
    _end_like(exit_code)
    sys.exit(exit_code)
