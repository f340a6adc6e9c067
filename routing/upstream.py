"""A backend as routing sees it, with the load that this gateway itself has put on it, and the pool behind one model."""

from __future__ import annotations

from dataclasses import dataclass

from backends.base import Backend
from backends.load import EngineLoad


@dataclass(slots=True, eq=False)
class Upstream:
    """One place to send requests of a model to. `in_flight` counts from dispatch until the response is closed; only
    Router changes it. `load` is what the engine last said of itself, None while nothing fresh is known."""

    backend: Backend
    in_flight: int = 0
    load: EngineLoad | None = None


@dataclass(slots=True, eq=False)
class UpstreamPool:
    """Everything that serves one model. `model` is its configured name, whatever alias a client used. `upstreams` is
    replaced as a whole when members join or leave."""

    model: str
    upstreams: tuple[Upstream, ...]

    def __post_init__(self) -> None:
        if not self.upstreams:
            raise ValueError(f"the pool of {self.model!r} has no upstream")
