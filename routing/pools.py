"""From a model's settings and its backends to the upstreams that routing knows.

Neighbours: upstream.py (what is made), the gateway's served.py (the caller).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from backends.base import Backend
from backends.vllm.command import launched_on_cpu
from config.schema import GgufSettings, ModelSettings
from routing.adaptive import AdaptiveLimit
from routing.signals import GGUF, VLLM
from routing.upstream import Upstream

# What the requests of our own GGUF engine cannot have (backends/gguf/protocol.py); of engines that run elsewhere nobody
# knows.
OUR_ENGINE_LACKS = frozenset({"guided_decoding", "images"})


def upstreams_of(model: ModelSettings, backends: Sequence[Backend]) -> tuple[Upstream, ...]:
    """The upstreams of `model`, its `backends` in their order."""
    return tuple(_upstream(model, backend) for backend in backends)


def _upstream(model: ModelSettings, backend: Backend) -> Upstream:
    ours = backend.name == GGUF and model.gguf is not None and model.gguf.source is not None
    # Engines that run elsewhere have an address, which outlives this process.
    label = getattr(backend, "address", f"{model.name}/{backend.name}")
    lacks = OUR_ENGINE_LACKS if ours else frozenset()
    # Our GGUF engine computes on nothing else.
    on_cores = ours or (backend.name == VLLM and model.vllm is not None and launched_on_cpu(model.vllm))
    return Upstream(backend, label=label, limit=_limit(model, backend.name), lacks=lacks, shares_cores=on_cores)


def _limit(model: ModelSettings, kind: str) -> float | AdaptiveLimit:
    settings = model.vllm if kind == VLLM else model.gguf
    if settings is None or settings.max_in_flight == "adaptive":
        return inf if settings is None else AdaptiveLimit()
    if settings.max_in_flight != "auto":
        return settings.max_in_flight
    slots = settings.parallel if isinstance(settings, GgufSettings) else settings.max_sequences
    return slots if isinstance(slots, int) else inf
