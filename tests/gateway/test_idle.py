"""Engines that are stopped for want of requests and started by the next one, seen by clients. Fake engine processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from backends.base import BackendState, Operation
from backends.engine import EngineBackend
from backends.process import EngineProcess
from config.schema import ModelSettings, Settings
from gateway.metrics import Series
from gateway.usage import Usage
from tests.backends.supervised import LIMIT_SECONDS, TIMING, fake_argv, until
from tests.gateway.running import CHAT, JSON, Gateway, body, served_model, serving_settings


class Sleeper:
    """The one engine of a gateway, stopped whenever nothing runs on it for a moment."""

    def __init__(self, gateway: Gateway, process: EngineProcess, starts: Callable[[], int]) -> None:
        self.gateway = gateway
        self.process = process
        self.starts = starts

    async def status(self) -> int:
        return (await self.gateway.chat()).status_code


@asynccontextmanager
async def sleeper(*modes: str, idle_stop_seconds: float = 0.02) -> AsyncIterator[Sleeper]:
    starts = 0

    def argv(path: str) -> list[str]:
        nonlocal starts
        starts += 1
        return fake_argv(path, *modes)

    process = EngineProcess("fake/gguf", argv, timing=TIMING)

    def make(_: ModelSettings) -> list[EngineBackend]:
        return [EngineBackend("gguf", process, idle_stop_seconds)]

    settings = Settings(models=(served_model("fake"),))
    async with asyncio.timeout(3 * LIMIT_SECONDS), serving_settings(settings, make) as gateway:
        yield Sleeper(gateway, process, lambda: starts)


async def test_many_requests_wait_for_one_start() -> None:
    async with sleeper() as engine:
        await until(engine.process, BackendState.READY)
        await until(engine.process, BackendState.STOPPED)
        assert set(await asyncio.gather(*(engine.status() for _ in range(20)))) == {200}
        assert engine.starts() == 2


async def test_asleep_it_is_ready_and_says_so() -> None:
    async with sleeper() as engine:
        await until(engine.process, BackendState.READY)
        await until(engine.process, BackendState.STOPPED)
        answer = await engine.gateway.client.get("/readyz")
        about = {"model": "fake", "backend": "gguf", "state": "stopped", "in_flight": 0, "asleep": True}
        assert (answer.status_code, answer.json()) == (200, {"status": "ready", "models": [about]})
        (seen,) = (await engine.gateway.client.get("/admin/status")).json()["models"][0]["upstreams"]
        assert (seen["state"], seen["obstacle"], seen["takes_more"]) == ("stopped", "asleep", False)
        told = (await engine.gateway.client.post("/admin/explain", json={"model": "fake"})).json()
        assert "the next one that would use it starts it" in told["upstreams"][0]["why_not"]
        labels = {"model": "fake", "backend": "gguf"}
        assert await engine.gateway.metric("upshift_backend_up", **labels) == 1
        assert await engine.gateway.metric("upshift_backend_replicas", **labels, state="stopped") == 1
        assert engine.starts() == 1, "whoever asks about it does not wake it"


async def test_no_request_is_lost_at_an_engine_that_is_just_being_stopped() -> None:
    """Each client asks again at once; an engine without a request for two milliseconds is stopped."""
    async with sleeper(idle_stop_seconds=0.002) as engine:

        async def ask() -> list[int]:
            found = []
            while engine.starts() < 25:
                found.append(await engine.status())
                while engine.process.state is BackendState.READY:
                    await engine.process.changed()
            return found

        answers = await asyncio.gather(*(ask() for _ in range(3)))
        assert {status for found in answers for status in found} == {200}
        assert engine.gateway.upstream.in_flight == 0


async def test_an_answer_that_runs_keeps_its_engine_awake() -> None:
    async with sleeper() as engine:
        await until(engine.process, BackendState.READY)
        # With the blank that the fake engine looks for.
        stream = json.dumps(body(stream=True))
        async with engine.gateway.client.stream("POST", CHAT, content=stream, headers=JSON) as answer:
            chunks = answer.aiter_raw()
            await anext(chunks)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await until(engine.process, BackendState.DRAINING)
        await until(engine.process, BackendState.STOPPED)


async def test_the_end_of_the_gateway_is_the_end_of_a_sleeping_engine() -> None:
    async with sleeper() as engine:
        await until(engine.process, BackendState.READY)
        await until(engine.process, BackendState.STOPPED)
    assert (engine.process.state, engine.process.asleep) == (BackendState.STOPPED, False)


@pytest.mark.parametrize(("running", "waiting", "busy"), [(0, 0, False), (1, 0, True), (0, 1, True)])
async def test_who_runs_or_waits_uses_the_engine(running: int, waiting: int, busy: bool) -> None:
    usage = Usage(Series(), lambda: running, lambda: waiting)
    assert (usage.used(), usage.busy, await usage.let_go()) == (busy, busy, not busy)


def test_a_request_between_two_looks_is_seen() -> None:
    series = Series()
    usage = Usage(series, lambda: 0, lambda: 0)
    assert not usage.used()
    series.requests[Operation.CHAT, 499] = 1
    assert usage.used()
    assert not usage.used()
