"""The engine's own /metrics, in the names that the gateway normalises every engine to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from backends.gguf.runner import Engine


def exposition(engine: Engine) -> bytes:
    """Prometheus text. Plain counters of the engine thread, read at scrape: nothing is paid per token."""
    registry = CollectorRegistry()
    registry.register(_Collector(engine))
    return generate_latest(registry)


class _Collector:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        engine, counters = self._engine, self._engine.counters
        for name, text, value in (
            ("running", "Sequences that own a slot", engine.running),
            ("waiting", "Sequences waiting for a slot", engine.waiting),
            ("slots", "Slots, and sequence ids, in all", engine.parallel),
            ("kv_cache_usage_ratio", "Cells computed for running sequences, of all cells", engine.kv_usage_ratio),
            ("kv_reserved_tokens", "Cells promised to running sequences", engine.reserved_tokens),
            (
                "kv_mismatches",
                "Slots whose cache differed from the plan when the engine last went idle",
                engine.kv_mismatches,
            ),
        ):
            yield GaugeMetricFamily(f"upshift_engine_{name}", text, value=value)
        for name, text, count in (
            ("prompt_tokens", "Prompt tokens of started requests", counters.prompt_tokens),
            ("prefix_cache_hits", "Prompt tokens that were not computed again", counters.cached_tokens),
            ("generation_tokens", "Tokens drawn", counters.generated_tokens),
            ("finished", "Sequences that ended by themselves", counters.finished),
            ("cancelled", "Sequences that their client left", counters.cancelled),
            ("failed", "Sequences lost to a failed decode", counters.failed),
            ("steps", "Batches computed", counters.steps),
        ):
            yield CounterMetricFamily(f"upshift_engine_{name}", text, value=count)
