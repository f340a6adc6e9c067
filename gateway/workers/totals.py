"""Numbers of several processes into one page of metrics: families as plain data, merged by rule. Pure.

Works on what a registry collects, not on the counters behind it: a metric that is added somewhere is summed here
without a word more. Neighbours: tally.py (collects), link.py (shows).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar, Sample

# [family, kind, help, [[sample, {label: value}, number, exemplar or None], ...]], an exemplar being [{label: value},
# number, time]: lists all the way down, for it crosses as JSON.
Family = list[Any]

# How a sample of several processes becomes one. Everything else is summed: counters and histograms because they count
# different requests, gauges because each process holds its own part (requests in flight, memory, open files).
RULES: dict[str, Callable[[float, float], float]] = {
    # Every worker is told of the same engine; one that has not heard yet cannot use it.
    "upshift_backend_up": min,
    # What engines say of themselves, or DNS of them, every worker hears; one that has not asked lately knows less.
    "upshift_backend_replicas": max,
    "upshift_engine_running": max,
    "upshift_engine_waiting": max,
    "upshift_engine_kv_cache_usage_ratio": max,
    "upshift_engine_prefix_cache_queries": max,
    "upshift_engine_prefix_cache_hits": max,
    "upshift_engine_preemptions": max,
    "upshift_redis_up": min,
    "process_start_time_seconds": min,
    "upshift_tls_certificate_expiry_timestamp_seconds": min,
}
_CUMULATIVE = ("counter", "histogram")


def dump(registry: CollectorRegistry) -> list[Family]:
    """What `registry` would show now."""
    return [
        [
            metric.name,
            metric.type,
            metric.documentation,
            [[s.name, s.labels, s.value, s.exemplar] for s in metric.samples],
        ]
        for metric in registry.collect()
    ]


def merge(pages: Iterable[Sequence[Family]]) -> list[Family]:
    """One page of all pages, in the order in which families and samples first appear."""
    families: dict[str, Family] = {}
    samples: dict[str, dict[tuple[Any, ...], list[Any]]] = {}
    for name, kind, documentation, found in (family for page in pages for family in page):
        families.setdefault(name, [name, kind, documentation, []])
        known = samples.setdefault(name, {})
        for sample, labels, value, exemplar in found:
            key = (sample, *sorted(labels.items()))
            if key in known:
                known[key][2] = RULES.get(name, _sum)(known[key][2], value)
                known[key][3] = max(filter(None, (known[key][3], exemplar)), key=itemgetter(2), default=None)
            else:
                known[key] = [sample, labels, value, exemplar]
    return [[*family[:3], list(samples[name].values())] for name, family in families.items()]


def lasting(page: Iterable[Family]) -> list[Family]:
    """What of a process's page outlives the process: what it counted, not what it held."""
    return [family for family in page if family[1] in _CUMULATIVE]


def as_registry(page: Sequence[Family]) -> CollectorRegistry:
    """A registry that shows `page`."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Page(page))
    return registry


def _sum(one: float, other: float) -> float:
    return one + other


class _Page(Collector):
    def __init__(self, page: Sequence[Family]) -> None:
        self._page = page

    def collect(self) -> Iterator[Metric]:
        for name, kind, documentation, samples in self._page:
            metric = Metric(name, documentation, kind)
            metric.samples = [
                Sample(sample, labels, value, None, Exemplar(*exemplar) if exemplar else None)
                for sample, labels, value, exemplar in samples
            ]
            yield metric
