"""What is told of the limits at Redis on /metrics. Neighbours: limiter.py (the numbers), ../metrics.py (all others)."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.replicas.limiter import SharedLimiter


class SharedLimitsCollector(Collector):
    """Whether Redis counts, and how often it did not."""

    def __init__(self, limiter: SharedLimiter) -> None:
        self._limiter = limiter

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client for each scrape."""
        yield GaugeMetricFamily("upshift_redis_up", "1 while Redis counts the limits.", value=float(self._limiter.up))
        yield CounterMetricFamily(
            "upshift_limits_without_redis",
            "Requests for which limits.on_redis_error decided because Redis did not answer.",
            value=self._limiter.without_redis,
        )
