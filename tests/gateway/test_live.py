"""Several replicas as one sample, and nothing where nothing is known."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from backends.base import BackendState
from backends.load import EngineCounts, EngineLoad
from gateway.metrics import GatewayCollector, Metrics
from routing.upstream import Upstream
from tests.fakes import FakeBackend


def shown(metrics: Metrics, *upstreams: Upstream) -> dict[str, float]:
    """Samples by name and labels; fails for one that is there twice."""
    registry = CollectorRegistry()
    registry.register(GatewayCollector(metrics, lambda: [("m", upstream) for upstream in upstreams]))
    samples = [sample for metric in registry.collect() for sample in metric.samples]
    found = {"/".join((sample.name, *sample.labels.values())): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


def _vllm(in_flight: int, load: EngineLoad | None, state: BackendState = BackendState.READY) -> Upstream:
    upstream = Upstream(FakeBackend("vllm", state=state))
    upstream.load, upstream.in_flight = load, in_flight
    return upstream


def test_replicas_of_one_kind_are_one_sample() -> None:
    gguf = Upstream(FakeBackend("gguf", state=BackendState.STARTING))
    replicas = (
        _vllm(2, EngineLoad(3, 1, 0.5, 0.0)),
        _vllm(3, EngineLoad(4, 0, 1.0, 0.0)),
        _vllm(0, None, BackendState.FAILED),
    )
    metrics = Metrics()
    metrics.series("m", "vllm").engine = EngineCounts(10, 4, 1)
    found = shown(metrics, gguf, *replicas)
    assert found["upshift_in_flight/m/vllm"] == 5
    assert (found["upshift_backend_up/m/gguf"], found["upshift_backend_up/m/vllm"]) == (0, 1)
    assert found["upshift_backend_replicas/m/vllm/ready"] == 2
    assert found["upshift_backend_replicas/m/vllm/failed"] == 1
    assert found["upshift_engine_running/m/vllm"] == 7
    assert found["upshift_engine_waiting/m/vllm"] == 1
    assert found["upshift_engine_kv_cache_usage_ratio/m/vllm"] == 0.75
    assert found["upshift_engine_prefix_cache_queries_total/m/vllm"] == 10
    assert found["upshift_engine_prefix_cache_hits_total/m/vllm"] == 4
    assert found["upshift_engine_preemptions_total/m/vllm"] == 1


def test_replica_that_leaves_counts_as_long_as_something_runs_on_it() -> None:
    registry = CollectorRegistry()
    members = [("m", _vllm(1, EngineLoad(1, 0, None, 0.0)))]
    leaving = [("m", _vllm(2, EngineLoad(2, 0, None, 0.0))), ("removed", _vllm(3, None))]
    registry.register(GatewayCollector(Metrics(), lambda: members, leaving=lambda: leaving))
    pair = {"model": "m", "backend": "vllm"}
    assert registry.get_sample_value("upshift_in_flight", pair) == 3
    assert registry.get_sample_value("upshift_in_flight", {**pair, "model": "removed"}) is None
    assert registry.get_sample_value("upshift_backend_replicas", {**pair, "state": "ready"}) == 1
    assert registry.get_sample_value("upshift_backend_replicas", {**pair, "state": "draining"}) == 1
    assert registry.get_sample_value("upshift_engine_running", pair) == 1


def test_engine_that_says_nothing_has_no_sample() -> None:
    found = shown(Metrics(), _vllm(1, None))
    assert [name for name in found if name.startswith("upshift_engine_")] == []
    assert shown(Metrics(), _vllm(1, EngineLoad(0, 0, None, 0.0)))["upshift_engine_running/m/vllm"] == 0
