"""The header lines of an inference answer, and what a stream sees before there is one.

Neighbours: relay.py (the caller), call.py (adds framing, Date and Connection).
"""

from __future__ import annotations

from functools import lru_cache
from time import perf_counter

from uvicorn.server import ServerState

from gateway.call import Call
from gateway.record import Record

_CLOSE = (b"connection", b"close")
SSE_HEADERS = b"cache-control: no-cache\r\nx-accel-buffering: no\r\n"


def answer_head(record: Record, content_type: bytes, limits: bytes, extra: bytes) -> bytes:
    """Whole lines: what it is, who answers and why, and `limits` and `extra` behind them."""
    return b"%bx-request-id: %b\r\nopenai-processing-ms: %d\r\n%b%b" % (
        _configured(content_type, record.backend, record.reason),
        record.request_id.encode(),
        (perf_counter() - record.started) * 1000,
        limits,
        extra,
    )


class CommonHeaders:
    """The header lines that every answer of a server has. `ending`: it lets each connection end with its next answer,
    as `lines` has found when it was asked last."""

    __slots__ = ("_lines", "_seen", "_server_state", "ending")

    def __init__(self, server_state: ServerState) -> None:
        self._server_state = server_state
        self._seen: object = None
        self._lines = b""
        self.ending = False

    def lines(self) -> bytes:
        """Above all the Date, which uvicorn renews each second."""
        headers = self._server_state.default_headers
        if self._seen is not headers:
            self._seen = headers
            self.ending = _CLOSE in headers
            self._lines = b"".join(b"%b: %b\r\n" % header for header in headers if header != _CLOSE)
        return self._lines


@lru_cache(maxsize=256)
def _configured(content_type: bytes, backend: str, reason: str) -> bytes:
    """The lines that thousands of answers have in common."""
    return b"content-type: %b\r\nx-upshift-backend: %b\r\nx-upshift-reason: %b\r\n" % (
        content_type,
        backend.encode(),
        reason.encode(),
    )


def tell_position(call: Call, record: Record, position: int, limits: bytes) -> None:
    """Tells a stream that waits for its turn that it is not forgotten. Its head leaves here, before anybody knows who
    will answer: from then on a failure is an event."""
    if not call.response_started:
        head = b"content-type: text/event-stream\r\nx-request-id: %b\r\n%b%b"
        call.start(200, head % (record.request_id.encode(), limits, SSE_HEADERS), None)
    call.progress()
    call.write(b": ping, position %d in the queue\n\n" % position)
