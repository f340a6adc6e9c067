"""Where server-sent events end: the relay passes on whole events only, so that an error event never lands inside one.

Pure. A chunk that ends with an event, which is nearly every chunk of every engine, goes through untouched.
"""

from __future__ import annotations

import re

# An event longer than this is passed on in pieces: bounded memory is worth more than a clean cut.
MAX_HELD_BYTES = 256 * 1024

_TAIL_BYTES = 32
_NO_CONTENT = re.compile(rb'"content"\s*:\s*(?:""|null)')
_DONE = (b"\ndata: [DONE]", b"\ndata:[DONE]")


class WholeEvents:
    """Incremental cutter for one stream."""

    __slots__ = ("_held", "_tail")

    def __init__(self) -> None:
        self._held = b""
        self._tail = b""

    def feed(self, chunk: bytes) -> bytes:
        """The events that are complete with `chunk`; empty while none is."""
        if self._held:
            chunk = self._held + chunk
            self._held = b""
        if not chunk.endswith((b"\n\n", b"\n\r\n")):
            end = _end_of_events(chunk)
            if end or len(chunk) <= MAX_HELD_BYTES:
                self._held = chunk[end:]
                chunk = chunk[:end]
        if chunk:
            self._tail = chunk[-_TAIL_BYTES:] if len(chunk) >= _TAIL_BYTES else (self._tail + chunk)[-_TAIL_BYTES:]
        return chunk

    def finish(self) -> bytes:
        """At the stream's end: a last `data: [DONE]` that lacks its blank line, completed; anything else is dropped."""
        last, self._held = self._held.rstrip(), b""
        if not (b"\n" + last).endswith(_DONE):
            return b""
        self._tail = last[-_TAIL_BYTES:]
        return last + b"\n\n"

    @property
    def done(self) -> bool:
        """Whether the last event passed on was `data: [DONE]`, the end that a whole stream has."""
        return (b"\n" + self._tail.rstrip()).endswith(_DONE)


def is_opening(events: bytes) -> bool:
    """Whether whole events hold no token yet: comments, or the role alone, with which engines open a chat stream before
    they have computed the prompt."""
    number = events.count(b"data:")
    return number == 0 or (number == 1 and b'"role"' in events and _NO_CONTENT.search(events) is not None)


def _end_of_events(chunk: bytes) -> int:
    """Length of the part of `chunk` that ends with an event; 0 where none ends. Lines end in LF or CRLF."""
    plain = chunk.rfind(b"\n\n")
    dos = chunk.rfind(b"\n\r\n")
    return max(plain + 2 if plain >= 0 else 0, dos + 3 if dos >= 0 else 0)
