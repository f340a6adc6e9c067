"""W3C trace context: which trace a request belongs to, read from `traceparent` and passed on with it.

Neighbours: relay.py (reads it), histogram.py (exemplars).
"""

from __future__ import annotations

import re
from typing import NamedTuple

# https://www.w3.org/TR/trace-context/#traceparent-header: later versions may have more behind it, and none is "ff".
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")


class TraceContext(NamedTuple):
    """The trace (32 hex digits), the caller's span in it (16), and whether the caller records it."""

    trace_id: str
    span_id: str
    sampled: bool


def parse(traceparent: bytes) -> TraceContext | None:
    """None for what is not valid; the standard wants that ignored."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or (match[4] and traceparent.startswith(b"00")):
        return None
    return TraceContext(match[1].decode(), match[2].decode(), bool(int(match[3], 16) & 1))
