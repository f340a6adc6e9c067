"""A model's backends from start to stop, and replicas that join and leave."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from backends.base import Backend, BackendState
from backends.discovery import Answer, Discovery, Target
from backends.load import EngineCounts, EngineLoad
from routing.membership import Membership, Upstreams
from routing.upstream import Upstream
from tests.fakes import FakeBackend


class Metered(FakeBackend):
    inquiry: Metered

    async def load(self) -> EngineLoad:
        return EngineLoad(1, 0, None, 0.0)


def metered(name: str) -> Metered:
    backend = Metered(name, state=BackendState.STOPPED)
    backend.inquiry = backend
    return backend


def nothing_changes(before: Upstreams, after: Upstreams) -> None:
    raise AssertionError((before, after))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)


async def test_every_backend_runs_from_start_to_stop_and_tells_its_load() -> None:
    membership = Membership("m", [metered("gguf"), metered("vllm")], Upstream)
    await membership.start(EngineCounts(), nothing_changes)
    assert [upstream.backend.state for upstream in membership.upstreams] == [BackendState.READY] * 2
    await until(lambda: all(upstream.load for upstream in membership.upstreams))
    for _ in range(2):
        await membership.stop()
        assert [(each.backend.state, each.load) for each in membership.upstreams] == [(BackendState.STOPPED, None)] * 2


async def test_backend_that_cannot_be_stopped_keeps_no_other_from_it() -> None:
    class Stubborn(FakeBackend):
        async def stop(self) -> None:
            raise OSError("no")

    membership = Membership("m", [Stubborn("gguf"), metered("vllm")], Upstream)
    await membership.start(EngineCounts(), nothing_changes)
    await membership.stop()
    assert membership.upstreams[1].backend.state is BackendState.STOPPED


class Fleet:
    """A membership whose DNS is `names`; `made` are all backends ever, by name, `pool` what routing would see."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.made: dict[str, list[Metered]] = {}
        self.pool: Upstreams = ()
        self.discovery = Discovery("vllm", "dns://x:1", self._look_up, self._make, least_seconds=0.001)
        self.membership = Membership("m", [self.discovery], Upstream)

    async def _look_up(self) -> Answer:
        return Answer(frozenset(map(Target, self.names)), 0.0)

    def _make(self, target: Target) -> Backend:
        backend = metered("vllm")
        self.made.setdefault(target.address, []).append(backend)
        return backend

    def changed(self, before: Upstreams, after: Upstreams) -> None:
        assert self.pool == before
        self.pool = after

    async def has(self, *names: str) -> None:
        """Returns once the pool has exactly these replicas."""
        self.names = set(names)
        await until(lambda: [self._name(upstream) for upstream in self.pool] == sorted(names))

    def _name(self, upstream: Upstream) -> str:
        return next((name for name, made in self.made.items() if upstream.backend in made), "")


@asynccontextmanager
async def fleet() -> AsyncIterator[Fleet]:
    found = Fleet()
    found.pool = found.membership.upstreams
    await found.membership.start(EngineCounts(), found.changed)
    try:
        yield found
    finally:
        await found.membership.stop()
        states = {backend.state for made in found.made.values() for backend in made}
        assert states <= {BackendState.STOPPED}


async def test_seat_is_kept_until_somebody_is_found() -> None:
    async with fleet() as found:
        assert [upstream.backend for upstream in found.pool] == [found.discovery]
        await until(lambda: found.discovery.state is BackendState.FAILED)
        assert [upstream.backend for upstream in found.pool] == [found.discovery]


async def test_replicas_join_and_leave_and_those_that_stay_are_not_touched() -> None:
    async with fleet() as found:
        await found.has("a", "b")
        first, second = found.pool
        await until(lambda: first.load is not None)
        await found.has("a", "b", "c")
        assert found.pool[:2] == (first, second)
        await found.has("b", "c")
        assert found.pool[0] is second
        await until(lambda: found.made["a"][0].state is BackendState.STOPPED)
        assert found.made["b"][0].state is BackendState.READY
        assert first.load is None


async def test_replica_that_leaves_finishes_what_runs_on_it() -> None:
    async with fleet() as found:
        await found.has("a", "b")
        leaver = found.pool[0]
        leaver.in_flight = 1
        await found.has("b")
        for _ in range(20):
            await asyncio.sleep(0)
        assert found.made["a"][0].state is BackendState.READY
        assert found.membership.in_flight == 1
        leaver.in_flight = 0
        await until(lambda: found.made["a"][0].state is BackendState.STOPPED)


async def test_replica_that_comes_back_before_it_has_gone_is_the_same() -> None:
    async with fleet() as found:
        await found.has("a", "b")
        leaver = found.pool[0]
        leaver.in_flight = 1
        await found.has("b")
        await found.has("a", "b")
        assert found.pool[0] is leaver
        leaver.in_flight = 0
        await found.has("b")
        await until(lambda: found.made["a"][0].state is BackendState.STOPPED)
        await found.has("a", "b")
        assert len(found.made["a"]) == 2
        assert found.pool[0] is not leaver


async def test_stopping_waits_for_nobody_who_leaves() -> None:
    async with fleet() as found:
        await found.has("a", "b")
        found.pool[0].in_flight = 1
        await found.has("b")
