"""From a model's settings and its backends to the upstreams that routing knows.

Neighbours: upstream.py (what is made), the gateway's served.py (the caller).
"""

from __future__ import annotations

from collections.abc import Sequence

from backends.base import Backend
from config.schema import ModelSettings
from routing.policy import GGUF
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
    return Upstream(backend, label=label, lacks=OUR_ENGINE_LACKS if ours else frozenset())
