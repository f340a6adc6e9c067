"""The conditions of a rule, held against one request and one moment. Pure.

Neighbours: config/routing.py (what can be asked for), policy.py (asks before it applies a policy).
"""

from __future__ import annotations

from config.routing import WhenSettings
from routing.ask import Ask
from routing.prediction import queue_seconds
from routing.signals import Signals


def matches(when: WhenSettings, signals: Signals, ask: Ask) -> bool:
    """Whether everything that `when` names holds."""
    return _request_matches(when, ask) and _moment_matches(when, signals)


def _request_matches(when: WhenSettings, ask: Ask) -> bool:
    if when.prompt_tokens_over is not None and ask.prompt_tokens <= when.prompt_tokens_over:
        return False
    # No bound is more than any bound.
    if when.max_tokens_over is not None and ask.max_tokens is not None and ask.max_tokens <= when.max_tokens_over:
        return False
    if when.features and ask.features.isdisjoint(when.features):
        return False
    return (
        (when.key is None or when.key == ask.key)
        and (when.key_tier is None or when.key_tier == ask.tier)
        and (when.model is None or when.model == ask.model)
    )


def _moment_matches(when: WhenSettings, signals: Signals) -> bool:
    if when.hours is not None:
        first, last = when.hours
        inside = first <= signals.hour < last if first < last else signals.hour >= first or signals.hour < last
        if not inside:
            return False
    return all(
        over is None or queue_seconds(kind, signals) > over
        for kind, over in (("gguf", when.gguf_queue_seconds_over), ("vllm", when.vllm_queue_seconds_over))
    )
