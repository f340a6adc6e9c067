"""How busy an engine says it is, whatever kind it is. Neighbours: routing/upstream.py (keeps the latest one)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """One look at an engine's own numbers. `running` and `waiting` are requests, `kv_cache_usage` runs from 0.0 to 1.0,
    None where the engine does not say; `taken_at` is `time.monotonic()` of the look."""

    running: int
    waiting: int
    kv_cache_usage: float | None
    taken_at: float
