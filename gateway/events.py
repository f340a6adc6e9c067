"""Where server-sent events end: the relay passes on whole events only, so that an error event never lands inside one.

Pure. A chunk that ends with an event, which is nearly every chunk of every engine, goes through untouched. An event in
which the engine says that it gives up ends the stream like an engine that dies: what it says is for the log.
"""

from __future__ import annotations

import json
import re
from typing import Any

from backends.errors import BackendProtocolError, shown_kind

# An event longer than this is passed on in pieces: bounded memory is worth more than a clean cut.
MAX_HELD_BYTES = 256 * 1024

_TAIL_BYTES = 32
_HAS_USAGE = re.compile(rb'"usage"\s*:\s*\{')
_NO_CONTENT = re.compile(rb'"content"\s*:\s*(?:""|null)')
_DONE = (b"\ndata: [DONE]", b"\ndata:[DONE]")

# How nearly every read of a stream ends: with an event of tokens, as vLLM, our engine and OpenAI write them. Behind an
# error comes none of these, so that it need not be looked for: a search costs more than all else that is done here.
_TOKEN_ENDS = (b"]}\n\n", b"null}\n\n")

# An event: lines up to an empty one. Its data: what these lines hold.
_EVENT = re.compile(rb"(?:[^\r\n][^\n]*(?:\n|\Z))+")
_BLANK = re.compile(rb"\n\r?\n")
_DATA = re.compile(rb"^data:(.*)$", re.MULTILINE)


class WholeEvents:
    """Incremental cutter for one stream."""

    __slots__ = ("_held", "_last")

    def __init__(self) -> None:
        self._held = b""
        self._last = b""

    def feed(self, chunk: bytes) -> bytes:
        """The events that are complete with `chunk`; empty while none is. Raises BackendProtocolError instead of
        passing on an error of the engine's: at once, or with the next call where events stand before it."""
        if self._held:
            chunk = self._held + chunk
            self._held = b""
        if not chunk.endswith(_TOKEN_ENDS):
            chunk = self._without_error(self._whole(chunk))
        if chunk:
            self._last = chunk
        return chunk

    def finish(self) -> bytes:
        """At the stream's end: a last `data: [DONE]` that lacks its blank line, completed; anything else is dropped.
        Raises BackendProtocolError as `feed` does."""
        last, self._held = self._held.rstrip(), b""
        self._without_error(last)
        if not (b"\n" + last).endswith(_DONE):
            return b""
        self._last = last
        return last + b"\n\n"

    @property
    def done(self) -> bool:
        """Whether the last event passed on was `data: [DONE]`, the end that a whole stream has."""
        return (b"\n" + self._last[-_TAIL_BYTES:].rstrip()).endswith(_DONE)

    def _whole(self, chunk: bytes) -> bytes:
        """The part of `chunk` that ends with an event; what is behind it is kept."""
        if chunk.endswith((b"\n\n", b"\n\r\n")):
            return chunk
        end = _end_of_events(chunk)
        if not end and len(chunk) > MAX_HELD_BYTES:
            return chunk
        self._held = chunk[end:]
        return chunk[:end]

    def _without_error(self, events: bytes) -> bytes:
        """`events` up to the first one that is an error, which is kept for the next call. Raises it where it is the
        first of all."""
        # Inside a JSON string the quotes would be escaped: this is a key, or a text of this one word.
        if b'"error"' not in events:
            return events
        for event in _EVENT.finditer(events):
            error = _error_in(event[0])
            if error is not None:
                if not event.start():
                    raise _broken_off(error)
                self._held = events[event.start() :] + self._held
                return events[: event.start()]
        return events


def without_usage(events: bytes) -> bytes:
    """Whole `events` without those that tell the usage alone: of a stream whose client did not ask for it."""
    kept, position = [], 0
    found = _HAS_USAGE.search(events)
    while found is not None:
        start, end = _around(events, position, found.start())
        if not end:
            break  # a piece of one that is longer than anything that tells usage alone
        if not _tells_usage_alone(events[start:end]):
            start = end
        kept.append(events[position:start])
        position = end
        found = _HAS_USAGE.search(events, position)
    return b"".join((*kept, events[position:])) if kept else events


def _around(events: bytes, position: int, inside: int) -> tuple[int, int]:
    """Where the event begins and ends that has something at `inside`; the one at `position` or one behind it. An end of
    0 where it has none."""
    start = position + _end_of_events(events[position:inside])
    end = _BLANK.search(events, inside)
    return start, end.end() if end is not None else 0


def _tells_usage_alone(event: bytes) -> bool:
    data = _data_of(event)
    return isinstance(data, dict) and not data.get("choices") and isinstance(data.get("usage"), dict)


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


def _broken_off(error: Any) -> BackendProtocolError:
    kind = error.get("type") if isinstance(error, dict) else None
    return BackendProtocolError(f"It broke its answer off with an error{shown_kind(kind)}.")


def _error_in(event: bytes) -> Any:
    """What an event says went wrong, in the form of OpenAI, vLLM and llama-server (`{"error": …}`) or of old versions
    of vLLM (`{"object": "error", …}`); None for any other event."""
    if b'"error"' not in event:
        return None
    data = _data_of(event)
    if not isinstance(data, dict):
        return None
    return data if data.get("object") == "error" else data.get("error") or None


def _data_of(event: bytes) -> Any:
    """What an event says; None where that is no JSON."""
    try:
        return json.loads(b"\n".join(_DATA.findall(event)))
    except (ValueError, RecursionError):
        return None
