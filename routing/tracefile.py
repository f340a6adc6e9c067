"""Where traced decisions are kept: a file of lines, bounded by turning it over.

Neighbours: trace.py (the lines), lane.py (the decisions).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from time import time

from config.routing import TraceSettings
from routing.policy import Plan
from routing.trace import Moment, line_of

FLUSH_LINES = 128
FLUSH_SECONDS = 0.5

logger = logging.getLogger(__name__)


class TraceFile:
    """Collects lines and appends them in batches. A full file becomes FILE.1, that FILE.2 and so on up to `keep`. One
    that cannot be written costs its lines and a single warning. Belongs to the event loop."""

    def __init__(self, settings: TraceSettings, worker: int | None = None) -> None:
        """One of several workers writes a file of its own: `trace.jsonl` becomes `trace-2.jsonl`."""
        path = Path(settings.file)
        self.path = path if worker is None else path.with_name(f"{path.stem}-{worker}{path.suffix}")
        self._max_bytes = settings.max_bytes
        self._keep = settings.keep
        self._lines: list[str] = []
        self._timer: asyncio.TimerHandle | None = None
        self._complained = False

    def add(self, plan: Plan, moment: Moment) -> None:
        """One decision that was just made by `plan`."""
        self._lines.append(line_of(plan, moment, time()))
        if len(self._lines) >= FLUSH_LINES:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.flush)

    def flush(self) -> None:
        """Writes what is collected, now."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        data = "".join(self._lines).encode()
        self._lines.clear()
        if not data:
            return
        try:
            self._turn_over(len(data))
            # Owner alone: who asked when is nobody else's business.
            with open(os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as file:
                file.write(data)
            self._complained = False
        except OSError as error:
            if not self._complained:
                logger.warning("decisions are not traced: %s: %s", self.path, error.strerror)
            self._complained = True

    def _turn_over(self, coming_bytes: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self.path.stat().st_size + coming_bytes <= self._max_bytes:
                return
            for number in range(self._keep - 1, 0, -1):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(_numbered(self.path, number), _numbered(self.path, number + 1))
            os.replace(self.path, _numbered(self.path, 1))


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
