"""Pages of several processes as one."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from gateway.workers.totals import Family, as_registry, dump, lasting, merge


def page(counted: float, held: float, observed: float, label: str = "a") -> list[Family]:
    """As another process sends it: through JSON."""
    registry = CollectorRegistry()
    Counter("asked", "Asked.", ["label"], registry=registry).labels(label).inc(counted)
    Gauge("held", "Held.", registry=registry).set(held)
    Histogram("took_seconds", "Took.", buckets=(1.0, 2.0), registry=registry).observe(observed)
    found: list[Family] = json.loads(json.dumps(dump(registry)))
    return found


def test_page_survives_the_crossing() -> None:
    registry = CollectorRegistry()
    Histogram("took_seconds", "Took.", buckets=(1.0, 2.0), registry=registry).observe(1.5)
    Gauge("held", 'With "quotes".', ["label"], registry=registry).labels("x\ny").set(0.5)
    crossed = as_registry(json.loads(json.dumps(dump(registry))))
    assert generate_latest(crossed) == generate_latest(registry)


def test_counters_histograms_and_gauges_are_summed_sample_by_sample() -> None:
    sample = as_registry(merge([page(2, 3, 0.5), page(4, 1, 1.5), page(1, 0, 9.0, label="b")])).get_sample_value
    assert sample("asked_total", {"label": "a"}) == 6
    assert sample("asked_total", {"label": "b"}) == 1
    assert sample("held") == 4
    assert [sample("took_seconds_bucket", {"le": le}) for le in ("1.0", "2.0", "+Inf")] == [1, 2, 3]
    assert (sample("took_seconds_sum"), sample("took_seconds_count")) == (11.0, 3)


def test_what_all_processes_share_is_not_summed() -> None:
    def shared(up: float, started: float) -> list[Family]:
        registry = CollectorRegistry()
        Gauge("upshift_backend_up", "Up.", registry=registry).set(up)
        Gauge("process_start_time_seconds", "Start.", registry=registry).set(started)
        return dump(registry)

    sample = as_registry(merge([shared(1, 200), shared(1, 100)])).get_sample_value
    assert (sample("upshift_backend_up"), sample("process_start_time_seconds")) == (1, 100)
    assert as_registry(merge([shared(1, 1), shared(0, 1)])).get_sample_value("upshift_backend_up") == 0


def test_what_a_process_held_ends_with_it() -> None:
    sample = as_registry(merge([lasting(page(2, 3, 0.5)), page(1, 1, 0.5)])).get_sample_value
    assert (sample("asked_total", {"label": "a"}), sample("took_seconds_count"), sample("held")) == (3, 2, 1)


@pytest.mark.parametrize("pages", [[], [[]], [[], []]])
def test_nothing_is_nothing(pages: list[list[Family]]) -> None:
    assert merge(pages) == []


def test_newest_exemplar_survives_the_crossing_and_the_sum() -> None:
    def page_with(trace: str | None, moment: float) -> list[Family]:
        family = HistogramMetricFamily("took_seconds", "Took.", labels=[])
        example = () if trace is None else (Exemplar({"trace_id": trace}, 0.5, moment),)
        family.add_metric([], [("1.0", 1, *example), ("+Inf", 1)], 0.5)
        registry = CollectorRegistry()
        registry.register(_Fixed(family))
        found: list[Family] = json.loads(json.dumps(dump(registry)))
        return found

    merged = merge([page_with("a", 2.0), page_with("b", 3.0), page_with("c", 1.0), page_with(None, 0.0)])
    text = openmetrics(as_registry(merged)).decode()  # type: ignore[no-untyped-call]
    assert 'took_seconds_bucket{le="1.0"} 4.0 # {trace_id="b"} 0.5 3.0' in text
    assert text.count("trace_id") == 1


class _Fixed(Collector):
    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterator[Metric]:
        yield self._family
