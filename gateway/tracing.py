"""Spans of requests, sent to an OpenTelemetry collector: OTLP over HTTP, in JSON.

A request that is recorded has three: the gateway's, and in it the waiting and the call of the engine, whose span the
engine gets as its parent. Names and attributes are those of the GenAI conventions. Neighbours: record.py (ends them),
trace.py (whose trace), gateway.py (starts and stops this). Why not the SDK: docs/decisions/013.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import secrets
import time
from collections.abc import Mapping
from importlib.metadata import version
from time import perf_counter
from typing import TYPE_CHECKING, Any

import httpx

from config.edge import TracingSettings
from gateway.trace import TraceContext, parse

if TYPE_CHECKING:
    from gateway.record import Record

EXPORT_SECONDS = 1.0
BATCH_SPANS = 512
# More than these are dropped while the collector does not take them.
MAX_SPANS = 8192
_TIMEOUT_SECONDS = 10.0

_INTERNAL, _SERVER, _CLIENT = 1, 2, 3
_ERROR = 2
_OPERATIONS = {"completion": "text_completion"}

logger = logging.getLogger("upshift")


class Trace:
    """One request's place in its trace: the caller's span, if any, the gateway's own, and the one of the call to the
    engine."""

    __slots__ = ("parent_id", "span_id", "trace_id", "upstream")

    def __init__(self, parent: TraceContext | None) -> None:
        self.trace_id = f"{random.getrandbits(128):032x}" if parent is None else parent.trace_id
        self.parent_id = "" if parent is None else parent.span_id
        self.span_id = _span_id()
        self.upstream = TraceContext(self.trace_id, _span_id(), sampled=True)


def _span_id() -> str:
    return f"{random.getrandbits(64) or 1:016x}"


class Tracer:
    """Collects spans and sends them on. Belongs to one event loop; `stop` it."""

    def __init__(self, settings: TracingSettings) -> None:
        self._url = settings.endpoint
        self._share = settings.sample_ratio
        self._resource = {
            "service.name": settings.service_name,
            "service.version": version("upshift"),
            "service.instance.id": secrets.token_hex(8),
        }
        self._spans: list[dict[str, Any]] = []
        self._exporting: asyncio.Task[None] | None = None
        self._dropped = 0
        self._failing = False

    def begin(self, traceparent: bytes | None) -> tuple[Trace | None, bytes | None]:
        """For a request that comes with `traceparent`: its trace if it is to be recorded, and what goes on to the
        engine. The caller decides whether; without one chance does."""
        parent = None if traceparent is None else parse(traceparent)
        recorded = random.random() < self._share if parent is None else parent.sampled  # noqa: S311 - no secret
        if not recorded:
            return None, None if parent is None else traceparent
        trace = Trace(parent)
        return trace, trace.upstream.render()

    def end(self, record: Record, trace: Trace, code: str) -> None:
        """A request is over; `code` is its error code, empty for success."""
        if len(self._spans) >= MAX_SPANS:
            self._dropped += 3
            return
        self._spans += _spans(record, trace, code)
        if self._exporting is None:
            self._exporting = asyncio.create_task(self._export())

    async def stop(self) -> None:
        """Sends what is left, once."""
        if self._exporting is not None:
            self._exporting.cancel()
            await asyncio.gather(self._exporting, return_exceptions=True)
        async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS / 5) as client:
            while self._spans and await self._send(client):
                pass

    async def _export(self) -> None:
        async with httpx.AsyncClient(timeout=_TIMEOUT_SECONDS) as client:
            while True:
                await asyncio.sleep(EXPORT_SECONDS)
                while len(self._spans) >= BATCH_SPANS and await self._send(client):
                    pass
                if self._spans:
                    await self._send(client)

    async def _send(self, client: httpx.AsyncClient) -> bool:
        """One batch; whether the collector took it. One that it does not take is lost: tracing must not fill memory."""
        batch, self._spans = self._spans[:BATCH_SPANS], self._spans[BATCH_SPANS:]
        body = json.dumps({"resourceSpans": [self._wrapped(batch)]})
        try:
            answer = await client.post(self._url, content=body, headers={"content-type": "application/json"})
            answer.raise_for_status()
        except asyncio.CancelledError:
            self._spans = batch + self._spans
            raise
        except httpx.HTTPError as error:
            self._dropped += len(batch)
            if not self._failing:
                logger.warning("spans are not taken at %s and dropped: %s", self._url, str(error).partition("\n")[0])
            self._failing = True
            return False
        if self._failing or self._dropped:
            logger.info("spans are taken again at %s; %d were dropped", self._url, self._dropped)
            self._failing, self._dropped = False, 0
        return True

    def _wrapped(self, spans: list[dict[str, Any]]) -> dict[str, Any]:
        scope = {"name": "upshift", "version": self._resource["service.version"]}
        return {
            "resource": {"attributes": _attributes(self._resource)},
            "scopeSpans": [{"scope": scope, "spans": spans}],
        }


def _spans(record: Record, trace: Trace, code: str) -> list[dict[str, Any]]:
    """The gateway's span, and those of waiting and of the engine's call where it came to that."""
    now = perf_counter()
    offset = time.time() - now
    call = _call_attributes(record)
    name = f"{call['gen_ai.operation.name']} {record.model}"
    status = {"status": {"code": _ERROR, "message": code}} if record.status >= 500 else {}

    def span(title: str, kind: int, own: str, parent: str, when: tuple[float, float]) -> dict[str, Any]:
        begin, end = (_nanoseconds(moment + offset) for moment in when)
        about: dict[str, Any] = {"traceId": trace.trace_id, "spanId": own, "name": title, "kind": kind}
        about |= {"startTimeUnixNano": begin, "endTimeUnixNano": end}
        return about | ({"parentSpanId": parent} if parent else {})

    mine = span(name, _SERVER, trace.span_id, trace.parent_id, (record.started, now)) | status
    mine["attributes"] = _attributes(_own_attributes(record, code) | call)
    if record.dispatched is None:
        return [mine]
    waiting = span("wait", _INTERNAL, _span_id(), trace.span_id, (record.arrived, record.dispatched))
    title = f"{record.backend} {name}"
    engine = span(title, _CLIENT, trace.upstream.span_id, trace.span_id, (record.dispatched, now)) | status
    engine["attributes"] = _attributes(call | {"gen_ai.provider.name": record.backend})
    if record.first_token is not None:
        engine["events"] = [{"name": "first token", "timeUnixNano": _nanoseconds(record.first_token + offset)}]
    return [mine, waiting, engine]


def _call_attributes(record: Record) -> dict[str, str | int]:
    """https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/, never what was said."""
    operation = _OPERATIONS.get(record.operation, str(record.operation))
    found: dict[str, str | int] = {"gen_ai.operation.name": operation, "gen_ai.request.model": record.model}
    if record.usage is not None:
        found["gen_ai.usage.input_tokens"] = record.usage.prompt_tokens
        found["gen_ai.usage.output_tokens"] = record.usage.completion_tokens
    return found


def _own_attributes(record: Record, code: str) -> dict[str, str | int]:
    found: dict[str, str | int] = {
        "http.request.method": "POST",
        "http.response.status_code": record.status,
        "upshift.request_id": record.request_id,
        "upshift.key": record.key,
        "upshift.backend": record.backend,
        "upshift.reason": record.reason,
    }
    return found | ({"error.type": code, "upshift.stage": record.stage} if code else {})


def _attributes(values: Mapping[str, str | int]) -> list[dict[str, Any]]:
    """As OTLP writes them in JSON, 64-bit numbers as text; empty texts are left out."""
    return [
        {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": str(value)}}
        for key, value in values.items()
        if value != ""
    ]


def _nanoseconds(seconds: float) -> str:
    return str(int(seconds * 1e9))
