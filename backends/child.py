"""One child process in a group of its own: its output line by line, and the pipe whose end tells it that we are gone.

Neighbour: process.py (EngineProcess), which decides when one is started and ended.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress

ERROR_PREFIX = "upshift engine: error: "

_KEPT_LINES = 50
_MAX_LINE_BYTES = 4096
_READ_BYTES = 64 * 1024
_MAX_CAUSE_CHARACTERS = 500

logger = logging.getLogger(__name__)


class Child:
    """A running process. Whoever spawned it must await `wait` or `end`, and call `close` last."""

    def __init__(self, process: asyncio.subprocess.Process, held_pipe: int, output: Output) -> None:
        self.pid = process.pid
        self.output = output
        self._process = process
        self._held_pipe = held_pipe

    @classmethod
    async def spawn(cls, name: str, argv: Sequence[str]) -> Child:
        """Starts `argv` as the leader of a new session: a terminal's Ctrl-C does not reach it, and its whole group can
        be killed. `name` is for the log. Raises OSError."""
        with ExitStack() as ours, ExitStack() as theirs:
            # Pipes of our own instead of asyncio's: those make wait() hang on as long as any grandchild holds one.
            stdin, held_pipe = os.pipe()
            theirs.callback(os.close, stdin)
            ours.callback(os.close, held_pipe)
            output_pipe, stdout = os.pipe()
            theirs.callback(os.close, stdout)
            ours.callback(os.close, output_pipe)
            process = await asyncio.create_subprocess_exec(
                *argv, stdin=stdin, stdout=stdout, stderr=stdout, start_new_session=True
            )
            ours.pop_all()
        return cls(process, held_pipe, Output(name, output_pipe))

    async def wait(self) -> int:
        """The exit code; negative for a signal."""
        return await self._process.wait()

    async def end(self, grace_seconds: float) -> None:
        """SIGTERM, and SIGKILL for the whole group once it has ended or the grace is over. Cancelled: SIGKILL now."""
        try:
            with suppress(ProcessLookupError):
                self._process.terminate()
            async with asyncio.timeout(grace_seconds):
                await self._process.wait()
        except TimeoutError:
            logger.warning("process %d did not end within %g s of SIGTERM: killed", self.pid, grace_seconds)
        finally:
            self.kill()
            await self._process.wait()

    def kill(self) -> None:
        """SIGKILL for the group: nothing that the process started outlives it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Reads what output is left and gives the pipes back."""
        self.output.close()
        os.close(self._held_pipe)


class Output:
    """What a process prints: each line logged at debug level, the last ones kept."""

    def __init__(self, name: str, pipe: int) -> None:
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._name = name
        self._pipe = pipe
        self._rest = b""
        self._loop = asyncio.get_running_loop()
        os.set_blocking(pipe, False)
        self._loop.add_reader(pipe, self._read)

    def close(self) -> None:
        """Takes the rest. Lines, not bytes without end: a grandchild may still be writing."""
        for _ in range(_MAX_LINE_BYTES * _KEPT_LINES // _READ_BYTES + 1):
            if not self._read():
                break
        self._loop.remove_reader(self._pipe)
        os.close(self._pipe)
        if self._rest:
            self._keep(self._rest)

    def _read(self) -> bool:
        """False when there is nothing more for now."""
        try:
            data = os.read(self._pipe, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._loop.remove_reader(self._pipe)
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._keep(line)
        if len(self._rest) > _MAX_LINE_BYTES:
            self._keep(self._rest)
            self._rest = b""
        return True

    def _keep(self, line: bytes) -> None:
        text = line[:_MAX_LINE_BYTES].decode(errors="replace").rstrip()
        # An escape sequence of a broken model's name has no business in a terminal that shows our log.
        text = "".join(character if character.isprintable() else " " for character in text)
        if text:
            self.lines.append(text)
            logger.debug("%s: %s", self._name, text)


def cause(exit_code: int, lines: Sequence[str]) -> str:
    """Why a process ended, in one line: its own words where it had any."""
    for line in reversed(lines):
        if line.startswith(ERROR_PREFIX):
            return line.removeprefix(ERROR_PREFIX)[:_MAX_CAUSE_CHARACTERS]
    if exit_code == -signal.SIGKILL:
        return "ended by SIGKILL; if nobody killed it, memory ran out"
    how = f"ended by {_signal_name(-exit_code)}" if exit_code < 0 else f"ended with exit code {exit_code}"
    return f"{how}: {lines[-1]}"[:_MAX_CAUSE_CHARACTERS] if lines else how


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
