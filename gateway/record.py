"""What is known about one request, and the one place where it turns into metrics and an access line.

Neighbours: relay.py (fills a Record), metrics.py, log.py.
"""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter

from backends.base import Operation, Usage
from backends.errors import BackendError
from gateway.errors import ClientGone, LimitsUnavailable, RateLimited, ShuttingDown, TooManyBodies, row_for
from gateway.histogram import Histogram
from gateway.log import AccessLog
from gateway.metrics import UNKNOWN_MODEL, Metrics
from gateway.trace import parse
from gateway.tracing import Trace, Tracer
from routing.errors import RoutingError
from routing.ticket import Ticket

logger = logging.getLogger(__name__)


class Record:
    """One request while it runs. Times are `perf_counter` seconds; `model` and `backend` are configured names only."""

    # What has not happened yet stays with the class: setting all of it for each request cost a microsecond.
    key: str = ""
    model: str = UNKNOWN_MODEL
    backend: str = ""
    reason: str = ""
    stream: bool = False
    stage: str = "body"
    status: int = 0
    error: BaseException | None = None
    first_byte: float | None = None
    first_token: float | None = None
    overhead_seconds: float = 0.0
    bytes_in: int = 0
    bytes_out: int = 0
    usage: Usage | None = None
    trace_id: str = ""
    trace: Trace | None = None
    arrived: float = 0.0
    dispatched: float | None = None
    ticket: Ticket | None = None
    ended: float = 0.0

    def __init__(self, operation: Operation, request_id: str, started: float) -> None:
        self.operation = operation
        self.request_id = request_id
        self.started = started

    @property
    def left_an_engine(self) -> bool:
        """Whether the client has left one that computed for it, nobody knows how much."""
        return isinstance(self.error, ClientGone) and self.ticket is not None and self.ticket.upstream is not None


class Journal:
    """Settles every request exactly once."""

    def __init__(self, metrics: Metrics, access_log: AccessLog, tracer: Tracer | None = None) -> None:
        self._metrics = metrics
        self._access_log = access_log
        self.tracer = tracer
        self._over: list[Record] = []

    def trace(self, record: Record, traceparent: bytes | None) -> bytes | None:
        """Notes the trace of a request that came with `traceparent`; returns what the engine shall get in its place."""
        if self.tracer is not None:
            record.trace, traceparent = self.tracer.begin(traceparent)
        context = None if traceparent is None else parse(traceparent)
        if context is None:
            return None
        record.trace_id = context.trace_id
        return traceparent

    def between_tokens(self, record: Record) -> Histogram:
        """Where the pauses of its stream count."""
        return self._metrics.series(record.model, record.backend).between_tokens

    def settle(self, record: Record) -> None:
        """A request is over, however it ended. It is written down in the loop's next turn with all that end in this
        one: done in a row, the code for it is still in the processor's cache."""
        record.ended = perf_counter()
        if not self._over:
            asyncio.get_running_loop().call_soon(self.flush)
        self._over.append(record)

    def flush(self) -> None:
        """Writes down all requests that are over, now."""
        over, self._over = self._over, []
        for record in over:
            try:
                self.write_down(record)
            except Exception:
                logger.exception("request %s could not be written down", record.request_id)

    def close(self) -> None:
        """The same, and nothing stays in memory."""
        self.flush()
        self._access_log.flush()

    def write_down(self, record: Record) -> None:
        """Counts and logs one of them."""
        duration_seconds = record.ended - record.started
        series = self._metrics.series(record.model, record.backend)
        series.count(record.operation, record.status, duration_seconds, record.trace_id)
        if record.first_byte is not None:
            series.overhead.observe(record.overhead_seconds)
        if record.first_token is not None:
            series.first_token.observe(record.first_token - record.started, record.trace_id)
        error, code = record.error, ""
        if error is not None:
            code = row_for(error).code
            if isinstance(error, ClientGone):
                self._metrics.cancelled[record.stage] += 1
            elif isinstance(error, RateLimited):
                self._metrics.rate_limited[error.limit] += 1
        if record.ticket is not None:
            self._metrics.routed(record.model, series, record.reason, record.ticket)
        if record.usage is not None:
            series.add_usage(record.usage)
        if record.trace is not None and self.tracer is not None:
            self.tracer.end(record, record.trace, code)
        self._access_log.add(record, duration_seconds, code)


def report(record: Record) -> None:
    """Failures that are nobody's refusal go to the log, with the cause that the client is not told."""
    error = record.error
    # The last two are ours to say no: the access line has them, and whoever causes them could fill the log.
    if record.status < 500 or isinstance(error, LimitsUnavailable | TooManyBodies):
        return
    if isinstance(error, BackendError | RoutingError | ShuttingDown):
        logger.warning("request %s on %s failed: %s", record.request_id, record.backend or record.model, error)
    else:
        logger.error("request %s failed unexpectedly", record.request_id, exc_info=error)
