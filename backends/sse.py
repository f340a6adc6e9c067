"""What the relay reads from, and writes into, bytes that it otherwise passes on: token usage, one error event.

Pure. Only chunks with a `"usage"` in them are looked at closely; the events of a stream are never decoded one by one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from backends.base import Usage

# A usage object is a few hundred bytes; one that is longer is not waited for.
MAX_OBJECT_BYTES = 4096
_MAX_TOKENS = 2**53
_MAX_ATTEMPTS = 4

_KEY = b'"usage"'
# Inside a JSON string the quotes would be escaped, so this is a key wherever it is found.
_OBJECT = re.compile(rb'"usage"[ \t\r\n]*:[ \t\r\n]*(?=\{)')
# The same as engines nearly always write it, whole.
_DIGITS = rb"(?:0|[1-9][0-9]{0,14})"
_N = rb" ?(%b)" % _DIGITS
_TOTAL = rb'(?:, ?"total_tokens": ?%b)?' % _DIGITS
_USUAL = re.compile(
    rb'"usage": ?\{(?:"completion_tokens":%b, ?)?"prompt_tokens":%b%b(?:, ?"completion_tokens":%b)?%b'
    rb'(?:, ?"prompt_tokens_details": ?(?:null|\{"cached_tokens":%b\}))?\}' % (_N, _N, _TOTAL, _N, _TOTAL, _N)
)
_BEGUN = re.compile(rb'"(?:u|us|usa|usag|usage|usage"[ \t\r\n]*|usage"[ \t\r\n]*:[ \t\r\n]*)?\Z')
_BEGUN_BYTES = 32
# What json.loads calls after it has looked for white space.
_scan = json.JSONDecoder().scan_once  # type: ignore[attr-defined]


class UsageSniffer:
    """Finds the last `"usage": {...}` of a streamed or whole OpenAI answer, wherever reads have split it.

    `usage` is None until one was seen; `held` is what may be the beginning of one, little more than MAX_OBJECT_BYTES.
    """

    __slots__ = ("held", "usage")

    def __init__(self) -> None:
        self.usage: Usage | None = None
        self.held = b""

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the answer. Never raises, whatever they are."""
        if self.held:
            chunk = self.held + chunk
            self.held = b""
        # From the end, where it is: CPython looks backwards twice as fast as forwards, too.
        end = chunk.rfind(_KEY)
        if end >= 0 and self._search(chunk, end):
            return
        if chunk.endswith(b"\n\n"):
            # Nearly every read of a stream: it ends with an event, so nothing is split.
            return
        begun = _BEGUN.search(chunk, max(0, len(chunk) - _BEGUN_BYTES))
        if begun is not None:
            self.held = chunk[begun.start() :]

    def _search(self, data: bytes, end: int) -> bool:
        """Takes over the last complete usage object, looking from the key at `end` backwards; True when one after it
        may still be completed, and is held."""
        unfinished = len(data)
        # The last one is the answer's; more than a few that are broken are a game that is not played along with.
        attempts = _MAX_ATTEMPTS
        for start in _backwards(data, end):
            usage = _usual(data, start)
            if usage is not None:
                self.usage = usage
                break
            found = _OBJECT.match(data, start)
            if found is None:
                continue
            if not attempts:
                break
            attempts -= 1
            text = data[found.end() : found.end() + MAX_OBJECT_BYTES].decode("utf-8", "replace")
            try:
                value, _ = _scan(text, 0)
            except (ValueError, RecursionError, StopIteration):
                if unfinished == len(data) and len(data) - found.end() < MAX_OBJECT_BYTES:
                    unfinished = start
                continue
            usage = _usage(value)
            if usage is not None:
                self.usage = usage
                break
        self.held = data[unfinished:]
        return bool(self.held)


def usage_of(body: bytes) -> Usage | None:
    """The last usage of a whole answer, None without one."""
    end = body.rfind(_KEY)
    if end < 0:
        return None
    usage = _usual(body, end)
    if usage is None:
        sniffer = UsageSniffer()
        sniffer.feed(body)
        usage = sniffer.usage
    return usage


def _backwards(data: bytes, end: int) -> Iterator[int]:
    """Where the key stands in `data`, the last place, `end`, first."""
    while end >= 0:
        yield end
        end = data.rfind(_KEY, 0, end)


def _usual(data: bytes, start: int) -> Usage | None:
    """The usage object at `start` where it is written as engines nearly always do."""
    found = _USUAL.match(data, start)
    if found is None:
        return None
    before, prompt, behind, cached = found.groups()
    return Usage(int(prompt), int(behind or before or 0), int(cached or 0))


def _usage(value: dict[str, Any]) -> Usage | None:
    """None where no token count is to be had. A count that no engine can mean is taken for none."""
    prompt, completion = value.get("prompt_tokens"), value.get("completion_tokens")
    if prompt is None and completion is None:
        return None
    details = value.get("prompt_tokens_details")
    cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else 0
    return Usage(_count(prompt), _count(completion), cached)


def _count(value: Any) -> int:
    return value if type(value) is int and 0 <= value < _MAX_TOKENS else 0


def error_event(message: str, error_type: str, code: str) -> bytes:
    """The event that ends a broken stream, in OpenAI's shape. No `[DONE]` may follow it."""
    # json escapes line breaks: the text cannot become an event of its own.
    body = json.dumps({"error": {"message": message, "type": error_type, "param": None, "code": code}})
    return b"data: " + body.encode() + b"\n\n"
