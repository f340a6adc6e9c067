"""W3C trace context: which trace a request belongs to, read from `traceparent` and passed on with it.

Neighbours: record.py (keeps it), tracing.py (makes spans of it), histogram.py (exemplars).
"""

from __future__ import annotations

import re
from typing import NamedTuple

# https://www.w3.org/TR/trace-context/#traceparent-header: later versions may have more behind it, and none is "ff".
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")


class TraceContext(NamedTuple):
    """The trace (32 hex digits), the span in it that calls (16), and whether it is recorded."""

    trace_id: str
    span_id: str
    sampled: bool

    def render(self) -> bytes:
        """As `traceparent` says it."""
        return b"00-%b-%b-%02d" % (self.trace_id.encode(), self.span_id.encode(), self.sampled)


def parse(traceparent: bytes) -> TraceContext | None:
    """None for what is not valid; the standard wants that ignored."""
    match = _TRACEPARENT.fullmatch(traceparent)
    if match is None or (match[4] and traceparent.startswith(b"00")):
        return None
    return TraceContext(match[1].decode(), match[2].decode(), bool(int(match[3], 16) & 1))
