"""Who may see /metrics and use /admin, on which listener."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from config.edge import AdminSettings
from config.schema import GgufSettings, ModelSettings, Settings
from gateway.admin import AdminPlane
from gateway.app import create_app
from gateway.auth import check_exposure
from gateway.bind import bind
from gateway.errors import HostRefused
from gateway.keys import hash_of, new_key
from gateway.server import GatewayServer
from tests.fakes import FakeBackend, chat_events
from tests.gateway.running import CHAT, Gateway, body, request, serving

KEY, BOSS = new_key(), new_key()
EVENTS = chat_events("Hel", "lo")
PATHS = ["/metrics", "/admin", "/admin/keys", "/%6detrics", "/admin/"]


def keys(folder: Path) -> dict[str, Any]:
    """A client's key as it is made by default, and an operator's."""
    file = folder / "keys.yaml"
    boss = {"name": "boss", "hash": hash_of(BOSS), "surfaces": ["operators"]}
    file.write_text(json.dumps({"keys": [{"name": "alice", "hash": hash_of(KEY)}, boss]}))
    return {"auth": {"keys_file": str(file)}}


async def status(gateway: Gateway, path: str, **headers: str) -> int:
    return (await gateway.client.get(path, headers={"authorization": f"Bearer {BOSS}"} | headers)).status_code


@pytest.mark.parametrize("path", PATHS)
async def test_where_clients_need_a_key_operators_need_one_of_theirs(tmp_path: Path, path: str) -> None:
    async with serving(FakeBackend(), edge=keys(tmp_path)) as gateway:
        assert await status(gateway, path) == (404 if path in {"/admin", "/admin/"} else 200)
        refused = await gateway.client.get(path, headers={"authorization": f"Bearer {KEY}"})
        error = refused.json()["error"]
        assert (refused.status_code, error["code"]) == (403, "surface_not_allowed")
        assert "`upshift keys add prometheus --surfaces operators`" in error["message"]
        for wrong in ("Bearer nobody", "Basic eDp5", ""):
            assert await status(gateway, path, authorization=wrong) == 401
        assert await status(gateway, "/livez", authorization="") == 200


@pytest.mark.parametrize("path", PATHS)
async def test_with_a_listener_of_their_own_nothing_is_left_on_the_main_one(tmp_path: Path, path: str) -> None:
    async with serving(FakeBackend(), edge={"admin": {}, **keys(tmp_path)}) as gateway:
        assert await status(gateway, path) == 404
        assert await status(gateway, "/readyz") == 200


def test_operators_listener_beyond_loopback_needs_a_word_too() -> None:
    settings = Settings.model_validate({"admin": {"host": "0.0.0.0"}})
    assert "0.0.0.0" in (check_exposure(settings) or "")
    assert check_exposure(settings.model_copy(update={"auth": "none"})) is None


@contextlib.asynccontextmanager
async def both(
    backend: FakeBackend, admin_host: str = "127.0.0.1", **edge: Any
) -> AsyncIterator[tuple[int, httpx.AsyncClient, asyncio.Task[None]]]:
    """The main listener's port, a client of the operators' one, and the server's task."""
    model = ModelSettings(name="fake", gguf=GgufSettings(source="demo"))
    server = {"port": 0, "drain_seconds": 10.0}
    admin = {"host": admin_host, "port": 0}
    settings = Settings.model_validate({"server": server, "models": (model,), "admin": admin, **edge})
    app = create_app(settings, make_backends=lambda _: [backend])
    sockets, operators = bind("127.0.0.1", 0), bind("127.0.0.1", 0)
    listening = asyncio.Event()
    running = GatewayServer(settings, app, listening.set, admin=operators)
    task = asyncio.create_task(running.serve(sockets=sockets))
    async with asyncio.timeout(20):
        await listening.wait()
        address = f"http://127.0.0.1:{operators[0].getsockname()[1]}"
        async with httpx.AsyncClient(base_url=address, trust_env=False) as client:
            try:
                yield sockets[0].getsockname()[1], client, task
            finally:
                running.should_exit = True
                await task


async def test_their_listener_serves_figures_and_health_and_no_models() -> None:
    backend = FakeBackend()
    async with both(backend) as (_, operators, _):
        assert "upshift_backend_up" in (await operators.get("/metrics")).text
        for path in ("/livez", "/readyz", "/health", "/version"):
            assert (await operators.get(path)).status_code == 200
        for path in ("/v1/models", "/v1/models/fake", "/docs", "//metrics"):
            assert (await operators.get(path)).status_code == 404
        for method, path in (("POST", CHAT), ("GET", CHAT)):
            answer = await operators.request(method, path, json=body())
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert (await operators.get("/metrics", headers={"host": "evil.example"})).status_code == 421
        assert "date" in (await operators.get("/livez")).headers
    assert backend.requests == []


async def test_their_listener_beyond_loopback_asks_for_a_key(tmp_path: Path) -> None:
    async with both(FakeBackend(), "0.0.0.0", **keys(tmp_path)) as (_, operators, _):
        for path in ("/metrics", "/admin/keys", "/admin/status"):
            assert (await operators.get(path)).status_code == 401
            assert (await operators.get(path, headers={"x-api-key": KEY})).status_code == 403
            assert (await operators.get(path, headers={"x-api-key": BOSS})).status_code == 200
        assert (await operators.get("/readyz")).status_code == 200


@pytest.mark.parametrize("admin", [None, {"host": "127.0.0.1"}], ids=str)
async def test_their_listener_stays_as_closed_as_it_was_opened(tmp_path: Path, admin: dict[str, str] | None) -> None:
    """`admin` takes a restart: what a reload says of it alters nothing at the socket that is there."""
    async with serving(FakeBackend(), edge=keys(tmp_path)) as gateway:
        plane = AdminPlane(gateway.app.gateway, AdminSettings(host="0.0.0.0"), gateway.app.control_plane)
        await gateway.reload(admin=admin, **keys(tmp_path))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(plane), base_url="http://localhost") as client:
            for path in ("/metrics", "/admin/keys"):
                assert (await client.get(path)).status_code == 401
            assert (await client.get("/readyz")).json() == {"status": "ready"}


async def test_their_listener_tells_of_the_drain_until_it_is_over() -> None:
    more = asyncio.Event()
    backend = FakeBackend(script=[EVENTS[0], more, *EVENTS[1:]])
    async with both(backend) as (port, operators, task):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request(json.dumps(body(stream=True)).encode()))
        await reader.readuntil(b"data: ")
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(10):
            while (await operators.get("/readyz", headers={"connection": "close"})).json()["status"] != "draining":
                pass
        assert "upshift_in_flight" in (await operators.get("/metrics")).text
        more.set()
        assert b"[DONE]" in await reader.read()
        writer.close()
        await task
        with pytest.raises(httpx.ConnectError):
            await operators.get("/livez")


async def test_health_tells_strangers_how_it_is_and_no_more(tmp_path: Path) -> None:
    async with serving(FakeBackend(), edge=keys(tmp_path)) as gateway:
        for path, more in (("/readyz", "models"), ("/health", "waiting_for")):
            assert (await gateway.client.get(path)).json() == {"status": "ready"}
            for key in ("nobody", KEY):
                told = await gateway.client.get(path, headers={"x-api-key": key})
                assert (told.status_code, told.json()) == (200, {"status": "ready"})
            assert more in (await gateway.client.get(path, headers={"x-api-key": BOSS})).json()
    async with both(FakeBackend(), "0.0.0.0", **keys(tmp_path)) as (_, operators, _):
        for headers in ({}, {"x-api-key": KEY}):
            assert (await operators.get("/readyz", headers=headers)).json() == {"status": "ready"}
        assert "models" in (await operators.get("/readyz", headers={"x-api-key": BOSS})).json()
    async with both(FakeBackend(), **keys(tmp_path)) as (_, operators, _):
        assert "models" in (await operators.get("/readyz")).json()


async def test_their_listener_goes_by_the_names_that_are_allowed_now() -> None:
    async with serving(FakeBackend(), edge={"admin": {}}) as gateway:
        plane = AdminPlane(gateway.app.gateway, AdminSettings(), gateway.app.control_plane)
        scope = {"path": "/livez", "headers": [(b"host", b"ops.example")], "http_version": "1.1"}
        with pytest.raises(HostRefused):
            plane.check(scope)
        await gateway.reload(server={**gateway.settings.server.model_dump(), "allowed_hosts": ["ops.example"]})
        plane.check(scope)
