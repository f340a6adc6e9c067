"""The control plane: what is served, how each model does, and that the lifespan owns the backends."""

from __future__ import annotations

import asyncio
import logging

import pytest

from backends.base import BackendState
from config.schema import Settings
from gateway import health
from gateway.app import create_app
from gateway.health import Readiness
from routing.upstream import Upstream
from tests.fakes import FakeBackend
from tests.gateway.running import serving


async def test_models_are_listed_with_their_aliases() -> None:
    async with serving(FakeBackend("org/one"), FakeBackend("two")) as gateway:
        listing = (await gateway.client.get("/v1/models")).json()
        assert listing["object"] == "list"
        assert [model["id"] for model in listing["data"]] == ["org/one", "alias", "two"]
        assert all(model["object"] == "model" and model["created"] > 0 for model in listing["data"])
        assert [model.get("root") for model in listing["data"]] == [None, "org/one", None]


@pytest.mark.parametrize("name", ["org/one", "alias", "org%2Fone"])
async def test_one_model_is_described(name: str) -> None:
    async with serving(FakeBackend("org/one")) as gateway:
        model = (await gateway.client.get(f"/v1/models/{name}")).json()
        assert (model["id"], model["owned_by"]) == (name.replace("%2F", "/"), "upshift")
        assert model["max_model_len"] == 4096


@pytest.mark.parametrize("name", ["nothing", "../../etc/passwd", "%2e%2e", "org/one/", "ORG/one"])
async def test_unknown_model_is_not_found(name: str) -> None:
    async with serving(FakeBackend("org/one")) as gateway:
        answer = await gateway.client.get(f"/v1/models/{name}")
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] in ("model_not_found", "not_found")


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


async def test_version_is_told() -> None:
    async with serving(FakeBackend()) as gateway:
        assert set((await gateway.client.get("/version")).json()) == {"version"}


async def test_metrics_speak_both_formats() -> None:
    async with serving(FakeBackend()) as gateway:
        plain = await gateway.client.get("/metrics")
        assert plain.headers["content-type"].startswith("text/plain")
        assert "upshift_requests_total" in plain.text
        assert "process_resident_memory_bytes" in plain.text
        new = await gateway.client.get("/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"})
        assert new.headers["content-type"].startswith("application/openmetrics-text")
        assert new.text.endswith("# EOF\n")


async def test_series_exist_before_the_first_request() -> None:
    async with serving(FakeBackend()) as gateway:
        pair = {"model": "fake", "backend": "fake"}
        assert await gateway.metric("upshift_tokens_total", **pair, kind="prompt") == 0
        assert await gateway.metric("upshift_backend_up", **pair) == 1


async def test_lifespan_starts_and_stops_the_backends() -> None:
    backend = FakeBackend(state=BackendState.STOPPED)
    async with serving(backend) as gateway:
        assert gateway.readiness.ready
    assert not gateway.readiness.ready


def test_building_an_application_starts_nothing() -> None:
    backend = FakeBackend(state=BackendState.STOPPED)
    create_app(Settings(), make_backend=lambda _: backend)
    assert backend.state is BackendState.STOPPED


async def test_changes_of_state_are_announced() -> None:
    told: asyncio.Queue[str] = asyncio.Queue()
    handler = logging.Handler()
    handler.emit = lambda record: told.put_nowait(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("upshift")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    backend = FakeBackend("m", state=BackendState.STARTING)
    task = asyncio.create_task(health.announce(Readiness([("m", Upstream(backend))]), interval_seconds=0))
    try:
        for state, expected in (
            (BackendState.READY, "model m is ready after"),
            (BackendState.STARTING, "model m is starting"),
            (BackendState.FAILED, "model m cannot be served: no memory"),
        ):
            backend.state, backend.failure = state, "no memory"
            async with asyncio.timeout(5):
                assert (await told.get()).startswith(expected)
    finally:
        task.cancel()
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
