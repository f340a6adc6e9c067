"""Counters and histograms as a scrape shows them."""

from __future__ import annotations

import math

from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics

from backends.base import BackendState, Operation, Usage
from gateway.histogram import Histogram
from gateway.metrics import GatewayCollector, Metrics
from routing.upstream import Upstream
from tests.fakes import FakeBackend

PAIR = {"model": "m", "backend": "b"}


def registry(metrics: Metrics, *upstreams: tuple[str, Upstream]) -> CollectorRegistry:
    found = CollectorRegistry()
    found.register(GatewayCollector(metrics, lambda: upstreams))
    return found


def test_requests_are_counted_by_operation_and_code() -> None:
    metrics = Metrics()
    series = metrics.series("m", "b")
    for operation, status in ((Operation.CHAT, 200), (Operation.CHAT, 200), (Operation.COMPLETION, 502)):
        series.count(operation, status, 0.4)
    sample = registry(metrics).get_sample_value
    assert sample("upshift_requests_total", {**PAIR, "operation": "chat", "code": "200"}) == 2
    assert sample("upshift_requests_total", {**PAIR, "operation": "completion", "code": "502"}) == 1
    assert sample("upshift_request_duration_seconds_count", {**PAIR, "operation": "chat"}) == 2
    assert sample("upshift_request_duration_seconds_sum", {**PAIR, "operation": "chat"}) == 0.8
    assert sample("upshift_request_duration_seconds_bucket", {**PAIR, "operation": "chat", "le": "0.3"}) == 0
    assert sample("upshift_request_duration_seconds_bucket", {**PAIR, "operation": "chat", "le": "0.5"}) == 2


def test_bucket_edges_belong_to_their_bucket() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 3.0, math.inf):
        histogram.observe(value)
    assert list(histogram.cumulative()) == [("1.0", 2), ("2.0", 4), ("+Inf", 6)]


def test_tokens_are_summed() -> None:
    metrics = Metrics()
    metrics.series("m", "b").add_usage(Usage(2, 3, 2))
    metrics.series("m", "b").add_usage(Usage(3, 5, 0))
    sample = registry(metrics).get_sample_value
    found = [sample("upshift_tokens_total", {**PAIR, "kind": kind}) for kind in ("prompt", "completion", "cached")]
    assert found == [5, 8, 2]


def test_live_state_is_read_at_scrape_time() -> None:
    backend = FakeBackend("b", state=BackendState.STARTING)
    upstream = Upstream(backend)
    found = registry(Metrics(), ("m", upstream))
    assert found.get_sample_value("upshift_backend_up", PAIR) == 0
    backend.state, upstream.in_flight = BackendState.READY, 3
    assert found.get_sample_value("upshift_backend_up", PAIR) == 1
    assert found.get_sample_value("upshift_in_flight", PAIR) == 3


def test_every_stage_of_leaving_exists_from_the_start() -> None:
    sample = registry(Metrics()).get_sample_value
    assert [sample("upshift_cancelled_total", {"stage": stage}) for stage in ("body", "waiting", "streaming")] == [
        0
    ] * 3


def test_pause_before_several_pieces_is_divided_among_them() -> None:
    histogram = Histogram((1.0, 2.0))
    histogram.spread(6.0, 4)
    assert (histogram.counts, histogram.total) == ([0, 4, 0], 6.0)


def test_newest_trace_of_a_bucket_is_its_exemplar() -> None:
    metrics = Metrics()
    for trace in ("a" * 32, "b" * 32, ""):
        metrics.series("m", "b").count(Operation.CHAT, 200, 0.4, trace)
    text = openmetrics(registry(metrics)).decode()  # type: ignore[no-untyped-call]
    lines = [line for line in text.splitlines() if 'operation="chat"' in line and "trace_id" in line]
    assert len(lines) == 1
    assert 'le="0.5"' in lines[0]
    assert f'# {{trace_id="{"b" * 32}"}} 0.4 ' in lines[0]
