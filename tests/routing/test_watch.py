"""The load of an upstream: kept fresh, forgotten when it is stale, said once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from backends.base import BackendState
from backends.errors import BackendProtocolError
from backends.load import EngineCounts, EngineLoad
from routing.upstream import Upstream
from routing.watch import keep_load
from tests.fakes import FakeBackend


class Probe:
    """Tells what `says` holds, or raises it, or hangs while it is None; counts how often, and how many at once."""

    def __init__(self) -> None:
        self.says: EngineLoad | Exception | None = EngineLoad(1, 0, 0.5, 0.0, 10, 5, 0)
        self.asked = 0
        self.at_once = 0

    async def load(self) -> EngineLoad:
        self.asked += 1
        self.at_once += 1
        assert self.at_once == 1
        try:
            await asyncio.sleep(0)
            if self.says is None:
                await asyncio.Event().wait()
            if isinstance(self.says, Exception):
                raise self.says
            assert self.says is not None
            return self.says
        finally:
            self.at_once -= 1


class Metered(FakeBackend):
    def __init__(self) -> None:
        super().__init__("vllm")
        self.inquiry = Probe()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)


@asynccontextmanager
async def kept(backend: FakeBackend) -> Any:
    upstream = Upstream(backend)
    counts = EngineCounts()
    task = asyncio.create_task(keep_load("m", upstream, counts, interval_seconds=0.002))
    try:
        yield counts, upstream
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_load_is_the_latest_look_and_counts_go_on() -> None:
    backend = Metered()
    async with kept(backend) as (counts, upstream):
        await until(lambda: upstream.load is not None)
        backend.inquiry.says = later = EngineLoad(7, 3, 0.9, 1.0, 30, 20, 2)
        await until(lambda: upstream.load is later)
        assert counts == EngineCounts(20, 15, 2)


async def test_engine_that_is_not_ready_has_no_load_and_is_not_asked() -> None:
    backend = Metered()
    async with kept(backend) as (_, upstream):
        await until(lambda: upstream.load is not None)
        backend.state = BackendState.FAILED
        await until(lambda: upstream.load is None)
        asked = backend.inquiry.asked
        for _ in range(5):
            await asyncio.sleep(0.002)
        assert backend.inquiry.asked == asked


async def test_failure_forgets_the_load_is_said_once_and_heals(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    backend = Metered()
    async with kept(backend) as (_, upstream):
        for _ in range(2):
            backend.inquiry.says = EngineLoad(1, 0, None, 0.0)
            await until(lambda: upstream.load is not None)
            backend.inquiry.says = BackendProtocolError("GET /metrics answered with status 404.")
            enough = backend.inquiry.asked + 3
            while backend.inquiry.asked < enough:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.001)
            assert upstream.load is None
    assert [record.getMessage() for record in caplog.records] == [
        "model m on vllm does not tell its load, own counts decide: GET /metrics answered with status 404.",
        "model m on vllm tells its load again",
        "model m on vllm does not tell its load, own counts decide: GET /metrics answered with status 404.",
    ]


async def test_hanging_engine_loses_its_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("routing.watch.PATIENCE_SECONDS", 0.02)
    backend = Metered()
    async with kept(backend) as (_, upstream):
        await until(lambda: upstream.load is not None)
        backend.inquiry.says = None
        await until(lambda: upstream.load is None)


async def test_backend_that_cannot_be_asked_is_left_alone() -> None:
    upstream = Upstream(FakeBackend())
    async with asyncio.timeout(5):
        await keep_load("m", upstream, EngineCounts())
    assert upstream.load is None
