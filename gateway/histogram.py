"""Counts of observations per bucket, and where the edges of the buckets are.

Neighbours: metrics.py (whose these are). prometheus_client's own costs five times as much for each observation.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

from prometheus_client.samples import Exemplar

# vLLM's edges (v1/metrics/loggers.py), so that one dashboard reads both.
DURATION_SECONDS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0),
    *(960.0, 1920.0, 7680.0),
)
FIRST_TOKEN_SECONDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0),
    *(80.0, 160.0, 640.0, 2560.0),
)
BETWEEN_TOKENS_SECONDS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
WAIT_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
OVERHEAD_SECONDS = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25)


class Histogram:
    """Counts per bucket and the sum; `edges` ascend, the last bucket is +Inf."""

    __slots__ = ("_examples", "counts", "edges", "total")

    def __init__(self, edges: tuple[float, ...]) -> None:
        self.edges = edges
        self.counts = [0] * (len(edges) + 1)
        self.total = 0.0
        # The newest trace of each bucket that had one.
        self._examples: dict[int, Exemplar] = {}

    def observe(self, value: float, trace_id: str = "") -> None:
        """Adds one observation, in the unit of the edges, and remembers whose it was where that is known."""
        bucket = bisect_left(self.edges, value)
        self.counts[bucket] += 1
        self.total += value
        if trace_id:
            self._examples[bucket] = Exemplar({"trace_id": trace_id}, value, time.time())

    def spread(self, value: float, count: int) -> None:
        """Adds `count` observations that have `value` in common, each an equal part of it."""
        self.counts[bisect_left(self.edges, value / count)] += count
        self.total += value

    def cumulative(self) -> Iterator[tuple[str, float] | tuple[str, float, Any]]:
        """(`le`, observations up to it) as Prometheus wants them, with an Exemplar where there is one."""
        seen = 0
        for bucket, (edge, count) in enumerate(zip((*map(str, self.edges), "+Inf"), self.counts, strict=True)):
            seen += count
            example = self._examples.get(bucket)
            yield (edge, seen) if example is None else (edge, seen, example)
