"""Writes lines where whoever reads them may be slow, without anybody waiting for that but a thread of its own.

A pipe that nobody reads is full after 64 KiB, and a write to it waits for ever: in the event loop that would be the end
of all answers. Neighbours: log.py (the lines), server.py and workers/worker.py (what is behind it).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

logger = logging.getLogger(__name__)

# Beyond this the newest are dropped: some tens of thousands of lines.
MOST_CHARACTERS = 8 * 1024 * 1024
# How long the end of a gateway waits for a reader.
PATIENCE_SECONDS = 2.0


class Spool:
    """Hands each text on to `write`, in order, in a thread. A context manager: its end waits a moment for the rest."""

    def __init__(self, write: Callable[[str], object], most_characters: int = MOST_CHARACTERS) -> None:
        self._write = write
        self._most_characters = most_characters
        self._texts: deque[str] = deque()
        self._characters = 0
        self._dropped = 0
        self._changed = threading.Condition()
        self._ended = False
        # Not waited for at the end of the process: its reader may never come back.
        self._thread = threading.Thread(target=self._run, name="access log", daemon=True)

    def __enter__(self) -> Spool:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join(PATIENCE_SECONDS)

    def __call__(self, text: str) -> None:
        """Soon, or never where too much waits already."""
        with self._changed:
            if self._characters + len(text) > self._most_characters:
                self._dropped += 1
                return
            self._texts.append(text)
            self._characters += len(text)
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._texts and not self._ended:
                    self._changed.wait()
                if not self._texts:
                    return
                text = "".join(self._texts)
                self._texts.clear()
                dropped, self._dropped = self._dropped, 0
            if dropped:
                logger.warning("the access log is read too slowly: %d batches of lines were dropped", dropped)
            self._write(text)
            with self._changed:
                self._characters -= len(text)
