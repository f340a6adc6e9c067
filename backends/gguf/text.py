"""From token bytes to text a client may see: UTF-8 never cut, stop strings never leaked. Pure."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Feeds on the bytes of one token at a time and gives the text that is safe to send.

    A character split over tokens is held back until it is whole; text that may still become a stop string is held back
    until it cannot. Once a stop string is complete, `stopped` names it and everything from it on is dropped.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._stop = tuple(stop)
        self._held = ""
        self.stopped: str | None = None

    def feed(self, piece: bytes) -> str:
        """Takes one token's bytes; returns the text that became safe, often all of it, possibly ""."""
        if self.stopped is not None:
            return ""
        text = self._decode(piece)
        return self._release(text, final=False) if self._stop else text

    def flush(self) -> str:
        """The generation ended by itself: whatever was held back is text after all."""
        if self.stopped is not None:
            return ""
        return self._release(self._decode(b"", True), final=True)

    def _release(self, text: str, *, final: bool) -> str:
        held = self._held + text
        found = min(((held.find(s), s) for s in self._stop if s in held), default=None)
        if found is not None:
            self.stopped = found[1]
            self._held = ""
            return held[: found[0]]
        keep = 0 if final else max((overlap(held, s) for s in self._stop), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]


def overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop` without completing it."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
