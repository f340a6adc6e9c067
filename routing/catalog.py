"""From the names clients use to what serves them. Fixed once built; an unknown name is an error, never a default.

Neighbours: upstream.py (the pools), router.py (asks), the gateway's GET /v1/models (lists).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from routing.errors import ModelNotFound
from routing.upstream import UpstreamPool


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One model as clients are shown it. `context_tokens` is None where the engine decides."""

    name: str
    aliases: tuple[str, ...] = ()
    context_tokens: int | None = None


class ModelCatalog:
    """Public name or alias -> pool. `models` and `pools` are in the order given and belong together by index."""

    def __init__(self, models: Iterable[tuple[CatalogEntry, UpstreamPool]]) -> None:
        """Raises ValueError when two models claim one name."""
        pairs = tuple(models)
        self.models: tuple[CatalogEntry, ...] = tuple(entry for entry, _ in pairs)
        self.pools: tuple[UpstreamPool, ...] = tuple(pool for _, pool in pairs)
        self._by_name: dict[str, UpstreamPool] = {}
        for entry, pool in pairs:
            for name in (entry.name, *entry.aliases):
                if name in self._by_name:
                    raise ValueError(f"two models are called {name!r}")
                self._by_name[name] = pool

    def resolve(self, name: str) -> UpstreamPool:
        """The pool that serves `name`, a model's own name or an alias, exactly as spelled. Raises ModelNotFound."""
        pool = self._by_name.get(name)
        if pool is None:
            raise ModelNotFound(name, tuple(self._by_name))
        return pool
