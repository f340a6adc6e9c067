"""Every number the gateway keeps: plain counters on the hot path, Prometheus families only when scraped.

Label values come from the configuration alone; an unknown model counts under model="unknown". Neighbours: relay.py
(records), app.py (exposes). This counting costs 1.5 µs a request; prometheus_client's children cost 5.5, `labels()` 15.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from backends.base import Operation, Usage
from backends.load import EngineCounts
from gateway.histogram import (
    BETWEEN_TOKENS_SECONDS,
    DURATION_SECONDS,
    FIRST_TOKEN_SECONDS,
    OVERHEAD_SECONDS,
    WAIT_SECONDS,
    Histogram,
)
from gateway.live import counted_families, live_families
from routing.ticket import Ticket
from routing.upstream import Upstream

UNKNOWN_MODEL = "unknown"
LIMIT_KINDS = ("requests", "tokens", "tokens_per_day", "concurrent")


@dataclass(slots=True)
class Series:
    """The numbers of one (model, backend) pair, resolved once and then only added to."""

    requests: dict[tuple[Operation, int], int] = field(default_factory=dict)
    duration: dict[Operation, Histogram] = field(
        default_factory=lambda: {operation: Histogram(DURATION_SECONDS) for operation in Operation}
    )
    first_token: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_SECONDS))
    between_tokens: Histogram = field(default_factory=lambda: Histogram(BETWEEN_TOKENS_SECONDS))
    overhead: Histogram = field(default_factory=lambda: Histogram(OVERHEAD_SECONDS))
    reasons: dict[str, int] = field(default_factory=dict)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    engine: EngineCounts = field(default_factory=EngineCounts)

    def count(self, operation: Operation, status: int, duration_seconds: float, trace_id: str = "") -> None:
        """One finished request, however it ended."""
        key = (operation, status)
        self.requests[key] = self.requests.get(key, 0) + 1
        self.duration[operation].observe(duration_seconds, trace_id)

    def add_usage(self, usage: Usage) -> None:
        """What the engine reported."""
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        self.cached_tokens += usage.cached_tokens


class Metrics:
    """All series of one gateway. Belongs to the event loop; no locks."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, str], Series] = {}
        self.cancelled: dict[str, int] = {"body": 0, "waiting": 0, "streaming": 0}
        # By model: how long its requests waited for a place, and how often another backend was asked.
        self.waits: dict[str, Histogram] = {}
        self.retries: dict[str, int] = {}
        self.rate_limited: dict[str, int] = dict.fromkeys(LIMIT_KINDS, 0)

    def series(self, model: str, backend: str) -> Series:
        """The one series of the pair, made at first use. Both names must come from the configuration."""
        found = self._series.get((model, backend))
        if found is None:
            found = self._series[model, backend] = Series()
        return found

    def routed(self, model: str, series: Series, reason: str, ticket: Ticket) -> None:
        """What routing did for a request of `model`, whose other numbers are in `series`."""
        waits = self.waits.get(model)
        if waits is None:
            waits = self.waits[model] = Histogram(WAIT_SECONDS)
        if ticket.waited_seconds:
            waits.observe(ticket.waited_seconds)
        else:
            waits.counts[0] += 1
        if reason:
            series.reasons[reason] = series.reasons.get(reason, 0) + 1
        if ticket.attempts > 1:
            self.retries[model] = self.retries.get(model, 0) + ticket.attempts - 1

    def decisions(self, model: str) -> dict[str, dict[str, int]]:
        """How many requests of `model` each backend has got, by the reason."""
        return {
            backend: dict(series.reasons)
            for (name, backend), series in self._series.items()
            if name == model and backend
        }

    def items(self) -> Iterable[tuple[list[str], Series]]:
        """([model, backend], series) of everything seen so far."""
        return [([*key], series) for key, series in self._series.items()]


class GatewayCollector(Collector):
    """Turns Metrics and the upstreams' live state into Prometheus families at scrape time."""

    def __init__(
        self,
        metrics: Metrics,
        upstreams: Callable[[], Iterable[tuple[str, Upstream]]],
        queues: Callable[[], Iterable[tuple[str, int]]] = lambda: (),
        leaving: Callable[[], Iterable[tuple[str, Upstream]]] = lambda: (),
    ) -> None:
        """`upstreams` by model, and those `leaving`; `queues`: how many requests of each model wait."""
        self._metrics = metrics
        self._upstreams = upstreams
        self._queues = queues
        self._leaving = leaving

    def collect(self) -> Iterator[Metric]:
        """Called by prometheus_client for each scrape."""
        yield from self._traffic()
        yield from self._tokens()
        yield from self._routing()
        yield from self._live()

    def _traffic(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "upshift_requests", "Finished requests; code 499 is a client that left.", labels=[*_OPERATION, "code"]
        )
        duration = HistogramMetricFamily(
            "upshift_request_duration_seconds", "From the request to the end of its answer.", labels=_OPERATION
        )
        first = HistogramMetricFamily(
            "upshift_time_to_first_token_seconds", "From the request to the first piece of a stream.", labels=_PAIR
        )
        between = HistogramMetricFamily(
            "upshift_inter_token_latency_seconds",
            "Between the pieces of a stream; of several that came together, an equal part each.",
            labels=_PAIR,
        )
        overhead = HistogramMetricFamily(
            "upshift_gateway_overhead_seconds", "The gateway's own share of the time to the first byte.", labels=_PAIR
        )
        for pair, series in self._metrics.items():
            for (operation, status), number in list(series.requests.items()):
                requests.add_metric([*pair, operation, str(status)], number)
            for operation, histogram in series.duration.items():
                duration.add_metric([*pair, operation], list(histogram.cumulative()), histogram.total)
            first.add_metric(pair, list(series.first_token.cumulative()), series.first_token.total)
            between.add_metric(pair, list(series.between_tokens.cumulative()), series.between_tokens.total)
            overhead.add_metric(pair, list(series.overhead.cumulative()), series.overhead.total)
        yield from (requests, duration, first, between, overhead)

    def _tokens(self) -> Iterator[Metric]:
        tokens = CounterMetricFamily(
            "upshift_tokens",
            "Tokens as engines reported them, or about as many as a stream had events.",
            labels=[*_PAIR, "kind"],
        )
        for pair, series in self._metrics.items():
            tokens.add_metric([*pair, "prompt"], series.prompt_tokens)
            tokens.add_metric([*pair, "completion"], series.completion_tokens)
            tokens.add_metric([*pair, "cached"], series.cached_tokens)
        yield tokens
        cancelled = CounterMetricFamily("upshift_cancelled", "Requests whose client left, by stage.", labels=["stage"])
        for stage, number in self._metrics.cancelled.items():
            cancelled.add_metric([stage], number)
        yield cancelled
        limited = CounterMetricFamily("upshift_rate_limited", "Requests refused by a limit.", labels=["limit"])
        for limit, number in self._metrics.rate_limited.items():
            limited.add_metric([limit], number)
        yield limited

    def _routing(self) -> Iterator[Metric]:
        labels = [*_PAIR, "reason"]
        decisions = CounterMetricFamily(
            "upshift_routing_decisions", "Requests sent to a backend, and why.", labels=labels
        )
        for pair, series in self._metrics.items():
            for reason, number in list(series.reasons.items()):
                decisions.add_metric([*pair, reason], number)
        waits = HistogramMetricFamily("upshift_queue_wait_seconds", "Time spent waiting for a place.", labels=["model"])
        for model, histogram in self._metrics.waits.items():
            waits.add_metric([model], list(histogram.cumulative()), histogram.total)
        retries = CounterMetricFamily("upshift_retries", "Further attempts after a failure.", labels=["model"])
        for model, number in self._metrics.retries.items():
            retries.add_metric([model], number)
        depth = GaugeMetricFamily("upshift_queue_depth", "Requests that wait for a place.", labels=["model"])
        for model, number in self._queues():
            depth.add_metric([model], number)
        yield from (decisions, waits, retries, depth)

    def _live(self) -> Iterator[Metric]:
        yield from live_families(self._upstreams(), self._leaving())
        yield from counted_families((pair, series.engine) for pair, series in self._metrics.items())


_PAIR = ["model", "backend"]
_OPERATION = [*_PAIR, "operation"]


def registry_for(collector: GatewayCollector) -> CollectorRegistry:
    """A registry of its own (nothing global) with the gateway's families and the process's (memory, files, CPU)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    ProcessCollector(registry=registry)
    return registry
