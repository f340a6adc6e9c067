"""What a process prints: each line logged at debug level, the last ones kept, and what they say of its end.

Neighbours: child.py (owns the pipe), vllm/signs.py (what lines of vLLM mean).
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

ERROR_PREFIX = "upshift engine: error: "

_KEPT_LINES = 200
_MAX_LINE_BYTES = 4096
_READ_BYTES = 64 * 1024
_MAX_CAUSE_CHARACTERS = 500
# A progress bar rewrites its line with a carriage return.
_LINE_END = re.compile(rb"[\r\n]")

logger = logging.getLogger(__name__)


class Sign(NamedTuple):
    """What one line of output says: how far the engine has loaded (0.0 to 1.0), or why it is about to end. Of several
    causes the one with the greatest `weight` counts, of equal ones the first."""

    progress: float | None = None
    cause: str = ""
    weight: int = 1


Reader = Callable[[str], Sign | None]


def gguf_sign(line: str) -> Sign | None:
    """Our own engine says in one line why it ends."""
    return Sign(cause=line.removeprefix(ERROR_PREFIX)) if line.startswith(ERROR_PREFIX) else None


class Output:
    """Reads `pipe`, which it owns, until `close`. `on_line` gets every line."""

    def __init__(self, name: str, pipe: int, on_line: Callable[[str], None] = lambda _: None) -> None:
        self.lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._name = name
        self._pipe = pipe
        self._on_line = on_line
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
        *lines, self._rest = _LINE_END.split(self._rest + data)
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
            self._on_line(text)


def cause(exit_code: int, lines: Sequence[str], sign: Reader = gguf_sign) -> str:
    """Why a process ended, in one line: its own words where `sign` finds any in what it printed."""
    told = [found for line in lines if (found := sign(line)) is not None and found.cause]
    if told:
        return max(told, key=lambda found: found.weight).cause[:_MAX_CAUSE_CHARACTERS]
    if exit_code == -signal.SIGKILL:
        return "ended by SIGKILL; if nobody killed it, memory ran out"
    how = f"ended by {_signal_name(-exit_code)}" if exit_code < 0 else f"ended with exit code {exit_code}"
    return f"{how}: {lines[-1]}"[:_MAX_CAUSE_CHARACTERS] if lines else how


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
