"""A model's backends from start to stop."""

from __future__ import annotations

import asyncio

from backends.base import BackendState
from backends.load import EngineCounts, EngineLoad
from routing.membership import Membership
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


async def test_every_backend_runs_from_start_to_stop_and_tells_its_load() -> None:
    membership = Membership("m", [Upstream(metered("gguf")), Upstream(metered("vllm"))])
    await membership.start(EngineCounts())
    assert [upstream.backend.state for upstream in membership.upstreams] == [BackendState.READY] * 2
    async with asyncio.timeout(20):
        while not all(upstream.load for upstream in membership.upstreams):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)
    for _ in range(2):
        await membership.stop()
        assert [(each.backend.state, each.load) for each in membership.upstreams] == [(BackendState.STOPPED, None)] * 2


async def test_backend_that_cannot_be_stopped_keeps_no_other_from_it() -> None:
    class Stubborn(FakeBackend):
        async def stop(self) -> None:
            raise OSError("no")

    membership = Membership("m", [Upstream(Stubborn("gguf")), Upstream(metered("vllm"))])
    await membership.start(EngineCounts())
    await membership.stop()
    assert membership.upstreams[1].backend.state is BackendState.STOPPED
