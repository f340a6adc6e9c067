"""What a collector gets of requests, and what happens when it takes nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

from backends.base import Usage
from backends.errors import BackendTimeout
from config.edge import TracingSettings
from gateway import tracing
from gateway.tracing import Tracer
from tests.fakes import FakeBackend, chat_events
from tests.gateway.running import CHAT, body, serving
from tests.gateway.test_trace import SPAN, TRACE


class Collector:
    """Takes OTLP/HTTP in JSON; answers `status`."""

    def __init__(self) -> None:
        self.status = 200
        self.bodies: list[dict[str, Any]] = []
        self.heads: list[bytes] = []
        self.asked = asyncio.Event()
        self.url = ""

    @property
    def spans(self) -> list[dict[str, Any]]:
        scopes = [
            scope for found in self.bodies for resource in found["resourceSpans"] for scope in resource["scopeSpans"]
        ]
        return [span for scope in scopes for span in scope["spans"]]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                found = re.search(rb"content-length: (\d+)", head.lower())
                assert found
                content = json.loads(await reader.readexactly(int(found[1])))
                self.heads.append(head)
                self.asked.set()
                if self.status == 200:
                    self.bodies.append(content)
                writer.write(b"HTTP/1.1 %d X\r\ncontent-length: 2\r\n\r\n{}" % self.status)
        writer.close()


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    found = Collector()
    server = await asyncio.start_server(found.serve, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    yield found
    server.close()


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    return {each["key"]: next(iter(each["value"].values())) for each in span.get("attributes", ())}


def by_kind(spans: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    return {span["kind"]: span for span in spans}


async def test_request_has_three_spans_in_the_trace_of_its_caller(collector: Collector) -> None:
    backend = FakeBackend(script=chat_events("a", "b", usage=Usage(7, 2)))
    async with serving(backend, edge={"tracing": {"endpoint": collector.url}}) as gateway:
        headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
        answer = await gateway.client.post(CHAT, json=body(stream=True, user="canary"), headers=headers)
        assert b"[DONE]" in answer.content
    spans = by_kind(collector.spans)
    assert sorted(spans) == [1, 2, 3]
    assert {span["traceId"] for span in spans.values()} == {TRACE}
    assert spans[2]["parentSpanId"] == SPAN
    assert spans[1]["parentSpanId"] == spans[3]["parentSpanId"] == spans[2]["spanId"]
    sent = dict(backend.requests[0].headers)[b"traceparent"].decode()
    assert sent == f"00-{TRACE}-{spans[3]['spanId']}-01"
    assert spans[2]["name"] == "chat fake"
    mine = attributes(spans[2])
    assert (mine["gen_ai.operation.name"], mine["gen_ai.request.model"]) == ("chat", "fake")
    assert (mine["gen_ai.usage.input_tokens"], mine["gen_ai.usage.output_tokens"]) == ("7", "2")
    assert (mine["http.response.status_code"], mine["upshift.reason"]) == ("200", "only")
    assert attributes(spans[3])["gen_ai.provider.name"] == "fake"
    order = [int(spans[2]["startTimeUnixNano"]), int(spans[1]["startTimeUnixNano"]), int(spans[1]["endTimeUnixNano"])]
    order += [int(spans[3]["events"][0]["timeUnixNano"]), int(spans[3]["endTimeUnixNano"])]
    assert order == sorted(order)
    resource = attributes(collector.bodies[0]["resourceSpans"][0]["resource"])
    assert resource["service.name"] == "upshift"
    assert collector.heads[0].startswith(b"POST /v1/traces ")
    assert "canary" not in json.dumps(collector.bodies)


async def test_failures_say_what_and_how_far(collector: Collector) -> None:
    backend = FakeBackend(before=[BackendTimeout("late")])
    async with serving(backend, edge={"tracing": {"endpoint": collector.url}}) as gateway:
        assert (await gateway.chat()).status_code == 504
        assert (await gateway.chat(model="unknown")).status_code == 404
    timeout, unknown = (span for span in collector.spans if span["kind"] == 2)
    assert timeout["status"] == {"code": 2, "message": "backend_timeout"}
    assert (attributes(timeout)["error.type"], attributes(timeout)["upshift.stage"]) == ("backend_timeout", "waiting")
    assert "status" not in unknown
    assert attributes(unknown)["error.type"] == "model_not_found"


@pytest.mark.parametrize(
    ("ratio", "traceparent", "recorded"),
    [
        (0.0, None, False),
        (1.0, None, True),
        (0.0, f"00-{TRACE}-{SPAN}-01", True),
        (1.0, f"00-{TRACE}-{SPAN}-00", False),
        (1.0, "nonsense", True),
    ],
)
async def test_caller_decides_and_else_chance(ratio: float, traceparent: str | None, recorded: bool) -> None:
    tracer = Tracer(TracingSettings(endpoint="http://127.0.0.1:1", sample_ratio=ratio))
    trace, passed_on = tracer.begin(None if traceparent is None else traceparent.encode())
    assert (trace is not None) is recorded
    if trace is not None:
        assert passed_on == f"00-{trace.trace_id}-{trace.upstream.span_id}-01".encode()
        assert trace.trace_id != "0" * 32
    else:
        assert passed_on == (None if traceparent is None else traceparent.encode())


async def test_collector_that_takes_nothing_costs_spans_and_one_line(
    collector: Collector, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "EXPORT_SECONDS", 0.01)
    collector.status = 503
    async with serving(FakeBackend(), edge={"tracing": {"endpoint": collector.url}}) as gateway:
        with caplog.at_level(logging.INFO, "upshift"):
            for _ in range(3):
                collector.asked.clear()
                assert (await gateway.chat()).status_code == 200
                await collector.asked.wait()
            collector.status = 200
            while "taken again" not in caplog.text:
                assert (await gateway.chat()).status_code == 200
    told = [record.getMessage() for record in caplog.records if "spans" in record.getMessage()]
    assert len(told) == 2
    assert "503" in told[0]
    assert re.search(r"taken again .* [1-9][0-9]* were dropped", told[1])


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces"),
        ("http://127.0.0.1:4318/", "http://127.0.0.1:4318/v1/traces"),
        ("https://otel.example/x/v1/traces", "https://otel.example/x/v1/traces"),
    ],
)
def test_path_of_the_standard_is_the_default(given: str, used: str) -> None:
    assert TracingSettings(endpoint=given).endpoint == used


@pytest.mark.parametrize("given", ["127.0.0.1:4318", "grpc://x:4317", "http://", "http://x:99999", "http://x:0/"])
def test_what_is_no_collector_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="OTLP/HTTP"):
        TracingSettings(endpoint=given)
