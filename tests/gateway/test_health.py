"""Alive, ready, and what each model is doing."""

from __future__ import annotations

import asyncio
import logging

import pytest

from backends.base import BackendState
from gateway.health import Readiness, announce
from routing.upstream import Upstream
from tests.fakes import FakeBackend
from tests.gateway.running import serving


async def test_ready_only_when_every_model_is() -> None:
    fine, slow = FakeBackend("fine"), FakeBackend("slow", state=BackendState.STARTING)
    slow.progress = 0.42
    async with serving(fine, slow) as gateway:
        answer = await gateway.client.get("/readyz")
        assert answer.status_code == 503
        report = answer.json()
        assert report["status"] == "not_ready"
        assert "slow" in report["reason"]
        assert report["models"] == [
            {"model": "fine", "backend": "fine", "state": "ready", "in_flight": 0},
            {"model": "slow", "backend": "slow", "state": "starting", "in_flight": 0, "progress": 0.42},
        ]
        assert (await gateway.client.get("/health")).json() == {"status": "not_ready", "waiting_for": ["slow"]}
        slow.state = BackendState.READY
        assert (await gateway.client.get("/readyz")).json()["status"] == "ready"
        assert (await gateway.client.get("/health")).status_code == 200


async def test_failure_says_why() -> None:
    broken = FakeBackend("broken", state=BackendState.FAILED)
    broken.failure = "not a GGUF file"
    async with serving(broken) as gateway:
        answer = await gateway.client.get("/readyz")
        assert (answer.status_code, answer.json()["models"][0]["failure"]) == (503, "not a GGUF file")
        assert (await gateway.client.get("/livez")).status_code == 200


async def test_draining_gateway_is_not_ready() -> None:
    async with serving(FakeBackend()) as gateway:
        gateway.readiness.draining = True
        answer = await gateway.client.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (503, "draining")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/version"])
async def test_probes_may_ask_for_the_head_only(path: str) -> None:
    async with serving(FakeBackend()) as gateway:
        answer = await gateway.client.head(path)
        assert (answer.status_code, answer.content) == (200, b"")


async def test_each_time_a_model_becomes_ready_is_announced() -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    handler = logging.Handler()
    handler.emit = lambda record: told.put_nowait(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("upshift")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    backend = FakeBackend("m", state=BackendState.STARTING)
    task = asyncio.create_task(announce(Readiness([("m", Upstream(backend))]), interval_seconds=0))
    try:
        async with asyncio.timeout(5):
            for _ in range(2):
                await asyncio.sleep(0)
                backend.state = BackendState.READY
                assert (await told.get()).startswith("model m is ready on m after 0.")
                backend.state = BackendState.STARTING
                for _ in range(3):
                    await asyncio.sleep(0)
        assert told.empty()
    finally:
        task.cancel()
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
