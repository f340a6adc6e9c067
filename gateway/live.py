"""What upstreams are doing at the moment of a scrape, and what their engines have counted, as Prometheus families.

One sample for each model and kind of backend, however many replicas it has: label values come from the configuration
alone. Neighbours: metrics.py (what has happened), routing/watch.py (asks the engines), workers/totals.py (how the same
engine's numbers from several workers become one).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric

from backends.base import BackendState
from backends.load import EngineCounts
from gateway.health import serves
from routing.upstream import Upstream

_PAIR = ["model", "backend"]

_Members = Mapping[tuple[str, str], Sequence[Upstream]]


def live_families(
    upstreams: Iterable[tuple[str, Upstream]], leaving: Iterable[tuple[str, Upstream]] = ()
) -> Iterator[Metric]:
    """Of (model, upstream) as they are now; those that are `leaving` get no new requests and count as draining."""
    found, gone = _by_pair(upstreams), _by_pair(leaving)
    yield from _ours(found, gone)
    yield from _theirs(found)


def _by_pair(upstreams: Iterable[tuple[str, Upstream]]) -> _Members:
    found: dict[tuple[str, str], list[Upstream]] = {}
    for model, upstream in upstreams:
        found.setdefault((model, upstream.backend.name), []).append(upstream)
    return found


def counted_families(counted: Iterable[tuple[list[str], EngineCounts]]) -> Iterator[Metric]:
    """Of ([model, backend], counts)."""
    queries = CounterMetricFamily(
        "upshift_engine_prefix_cache_queries", "Prompt tokens looked up in the prefix cache.", labels=_PAIR
    )
    hits = CounterMetricFamily("upshift_engine_prefix_cache_hits", "Prompt tokens found there.", labels=_PAIR)
    preemptions = CounterMetricFamily("upshift_engine_preemptions", "Requests that had to give way.", labels=_PAIR)
    for pair, counts in counted:
        queries.add_metric(pair, counts.prefix_cache_queries)
        hits.add_metric(pair, counts.prefix_cache_hits)
        preemptions.add_metric(pair, counts.preemptions)
    yield from (queries, hits, preemptions)


def _ours(members: _Members, leaving: _Members) -> Iterator[Metric]:
    in_flight = GaugeMetricFamily("upshift_in_flight", "Requests dispatched and not yet released.", labels=_PAIR)
    up = GaugeMetricFamily("upshift_backend_up", "1 while the backend is ready, or asleep.", labels=_PAIR)
    replicas = GaugeMetricFamily("upshift_backend_replicas", "Engines by state.", labels=[*_PAIR, "state"])
    for pair, upstreams in members.items():
        gone = leaving.get(pair, ())
        states = Counter(upstream.backend.state for upstream in upstreams)
        states[BackendState.DRAINING] += len(gone)
        in_flight.add_metric([*pair], sum(upstream.in_flight for upstream in (*upstreams, *gone)))
        up.add_metric([*pair], float(any(map(serves, upstreams))))
        for state in BackendState:
            replicas.add_metric([*pair, state], states[state])
    yield from (in_flight, up, replicas)


def _theirs(members: _Members) -> Iterator[Metric]:
    """Nothing of engines that do not say: a 0 would look like an idle one."""
    running = GaugeMetricFamily("upshift_engine_running", "Requests that the engine computes.", labels=_PAIR)
    waiting = GaugeMetricFamily("upshift_engine_waiting", "Requests that wait in the engine.", labels=_PAIR)
    usage = GaugeMetricFamily("upshift_engine_kv_cache_usage_ratio", "Share of the KV cache in use.", labels=_PAIR)
    for pair, upstreams in members.items():
        loads = [upstream.load for upstream in upstreams if upstream.load is not None]
        if loads:
            running.add_metric([*pair], sum(load.running for load in loads))
            waiting.add_metric([*pair], sum(load.waiting for load in loads))
        shares = [load.kv_cache_usage for load in loads if load.kv_cache_usage is not None]
        if shares:
            usage.add_metric([*pair], sum(shares) / len(shares))
    yield from (running, waiting, usage)
