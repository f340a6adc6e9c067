"""How busy an engine says it is, whatever kind it is: the text of its /metrics becomes one EngineLoad. Pure.

Neighbours: inquiry.py (asks for the text), routing/watch.py (when, and what silence means), gateway/live.py (shows it).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """One look at an engine's own numbers, those of all its data-parallel parts together.

    `running` and `waiting` are requests, `kv_cache_usage` runs from 0.0 to 1.0, `taken_at` is `time.monotonic()` of the
    look. The rest counts since the engine started: prompt tokens looked up in the prefix cache and found there, and
    requests that had to give way to others. None where the engine does not say.
    """

    running: int
    waiting: int
    kv_cache_usage: float | None
    taken_at: float
    prefix_cache_queries: int | None = None
    prefix_cache_hits: int | None = None
    preemptions: int | None = None


@dataclass(slots=True)
class EngineCounts:
    """What engines have counted since they were first looked at, all engines of one kind together. Never falls, however
    often engines restart, join, leave or do not answer, so that rates over it hold."""

    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    preemptions: int = 0

    def add(self, before: EngineLoad | None, now: EngineLoad) -> None:
        """What one engine has counted between two looks; the first look at an engine only marks where it begins."""
        if before is None:
            return
        self.prefix_cache_queries += _grown(before.prefix_cache_queries, now.prefix_cache_queries)
        self.prefix_cache_hits += _grown(before.prefix_cache_hits, now.prefix_cache_hits)
        self.preemptions += _grown(before.preemptions, now.preemptions)


def _grown(before: int | None, now: int | None) -> int:
    """A counter that has fallen began again at 0."""
    if before is None or now is None:
        return 0
    return now - before if now >= before else now


class _Names(NamedTuple):
    """What an engine calls its numbers; several are added up."""

    running: str
    waiting: str
    kv_cache_usage: str = ""
    queries: tuple[str, ...] = ()
    hits: tuple[str, ...] = ()
    preemptions: tuple[str, ...] = ()


# vLLM 0.33, our engine (gguf/metrics.py), and llama-server of llama.cpp@0c1e57098, which tells no KV usage any more and
# counts the prompt tokens that it computed apart from those it found.
_VOCABULARIES = (
    _Names(
        "vllm:num_requests_running",
        "vllm:num_requests_waiting",
        "vllm:kv_cache_usage_perc",
        ("vllm:prefix_cache_queries_total",),
        ("vllm:prefix_cache_hits_total",),
        ("vllm:num_preemptions_total",),
    ),
    _Names(
        "upshift_engine_running",
        "upshift_engine_waiting",
        "upshift_engine_kv_cache_usage_ratio",
        ("upshift_engine_prompt_tokens_total",),
        ("upshift_engine_prefix_cache_hits_total",),
    ),
    _Names(
        "llamacpp:requests_processing",
        "llamacpp:requests_deferred",
        queries=("llamacpp:prompt_tokens_total", "llamacpp:prompt_tokens_cached_total"),
        hits=("llamacpp:prompt_tokens_cached_total",),
    ),
)


def _wanted() -> frozenset[str]:
    gauges = {name for names in _VOCABULARIES for name in names[:3] if name}
    return frozenset(gauges.union(*(counters for names in _VOCABULARIES for counters in names[3:])))


# vLLM's page has a thousand lines, most of them buckets: only the names that are asked for are looked at closely.
_SAMPLE = re.compile(
    rb"^(" + b"|".join(re.escape(name.encode()) for name in sorted(_wanted())) + rb")(?:\{.*\})?[ \t]+(\S+)",
    re.MULTILINE,
)


def parse_load(exposition: bytes, taken_at: float) -> EngineLoad | None:
    """The load in a page of Prometheus text; None where no engine that is known tells what it runs. Never raises."""
    samples: dict[str, list[float]] = {}
    for name, text in _SAMPLE.findall(exposition):
        value = _number(text)
        if value is not None:
            samples.setdefault(name.decode(), []).append(value)
    for names in _VOCABULARIES:
        if names.running in samples:
            return EngineLoad(
                _sum(samples, [names.running]) or 0,
                _sum(samples, [names.waiting]) or 0,
                _mean(samples.get(names.kv_cache_usage)),
                taken_at,
                _sum(samples, names.queries),
                _sum(samples, names.hits),
                _sum(samples, names.preemptions),
            )
    return None


def _number(text: bytes) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) and value >= 0 else None


def _sum(samples: Mapping[str, Sequence[float]], names: Sequence[str]) -> int | None:
    found = [value for name in names for value in samples.get(name, ())]
    return int(sum(found)) if found else None


def _mean(values: Sequence[float] | None) -> float | None:
    return min(sum(values) / len(values), 1.0) if values else None
