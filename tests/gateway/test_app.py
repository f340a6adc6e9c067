"""What is built from settings, its metrics page, and that its lifespan owns the backends."""

from __future__ import annotations

from importlib.metadata import version

from backends.base import BackendState
from config.schema import Settings
from gateway.app import create_app
from tests.fakes import FakeBackend
from tests.gateway.running import serving


async def test_version_is_told() -> None:
    async with serving(FakeBackend()) as gateway:
        told = (await gateway.client.get("/version")).json()
        assert told == {"version": version("upshift"), "profile": "auto"}


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
    create_app(Settings(), make_backends=lambda _: [backend])
    assert backend.state is BackendState.STOPPED
