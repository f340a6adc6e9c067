"""What one configuration serves: for each model its artifacts, and the upstreams that call them.

An artifact is a model by one engine: its settings with `gguf` or `vllm` alone. Configurations that have one in common
share its upstreams, with everything that runs on them. Neighbours: app.py (goes from one configuration to the next),
routing/catalog.py, backends/factory.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from backends.base import Backend, BackendState
from backends.selection import GGUF, VLLM, rank
from config.schema import ModelSettings, Settings
from routing.catalog import CatalogEntry, ModelCatalog
from routing.membership import Membership
from routing.pools import upstreams_of
from routing.upstream import Upstream, UpstreamPool

MakeBackends = Callable[[ModelSettings], Sequence[Backend]]


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """An artifact and what calls it, at least one upstream."""

    artifact: ModelSettings
    membership: Membership

    @property
    def upstreams(self) -> tuple[Upstream, ...]:
        """Those of now."""
        return self.membership.upstreams

    @property
    def model(self) -> str:
        """The configured name of its model."""
        return self.artifact.name

    @property
    def kind(self) -> str:
        """Of its engine: "gguf" or "vllm"."""
        return GGUF if self.artifact.gguf is not None else VLLM

    @property
    def ready(self) -> bool:
        """Whether a call makes sense now."""
        return any(upstream.backend.state is BackendState.READY for upstream in self.upstreams)

    @property
    def refused(self) -> bool:
        """Whether it does not come up for want of memory beside the others."""
        return any(getattr(upstream.backend, "refused", False) for upstream in self.upstreams)

    @property
    def in_flight(self) -> int:
        """Requests that run on it."""
        return self.membership.in_flight


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """The catalog of one configuration and the members of its pools."""

    catalog: ModelCatalog
    members: tuple[Member, ...]

    @property
    def upstreams(self) -> list[tuple[str, Upstream]]:
        """(model, upstream) of all that may be asked now."""
        return [(pool.model, upstream) for pool in self.catalog.pools for upstream in pool.upstreams]


def assemble(settings: Settings, make_backends: MakeBackends, before: Iterable[Member] = ()) -> Served:
    """The models of `settings`; where `before` has an artifact, with its upstreams. Nothing is started.

    A member of before that is ready and has no place any more stays in its model's pool behind the new ones: it serves
    until they can.
    """
    before = tuple(before)
    members: list[Member] = []
    pairs: list[tuple[CatalogEntry, UpstreamPool]] = []
    for model in settings.models:
        found = (_member(artifact, make_backends, before) for artifact in model.artifacts)
        mine = sorted(found, key=lambda member: rank(member.kind, settings.profile))
        leaving = [member for member in before if member.model == model.name and member not in mine and member.ready]
        pool = UpstreamPool(model.name, tuple(upstream for each in (*mine, *leaving) for upstream in each.upstreams))
        pairs.append((CatalogEntry(model.name, model.aliases, model.context_tokens), pool))
        members += mine
    return Served(ModelCatalog(pairs), tuple(members))


def _member(artifact: ModelSettings, make_backends: MakeBackends, before: Iterable[Member]) -> Member:
    for member in before:
        if member.artifact == artifact:
            return member

    def enroll(backend: Backend) -> Upstream:
        (upstream,) = upstreams_of(artifact, [backend])
        return upstream

    return Member(artifact, Membership(artifact.name, make_backends(artifact), enroll))
