"""What the gateway says of itself in OpenAPI: all that it serves, to whom it is for, and to nobody else."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from config.edge import AdminSettings
from gateway.admin import AdminPlane
from gateway.dataplane import INFERENCE
from gateway.keys import hash_of, new_key
from tests.fakes import FakeBackend
from tests.gateway.running import CHAT, Gateway, serving

KEY, NARROW, BOSS = (new_key() for _ in range(3))


def edge(folder: Path, **more: Any) -> dict[str, Any]:
    keys = [
        {"name": "a", "hash": hash_of(KEY)},
        {"name": "narrow", "hash": hash_of(NARROW), "models": ["other"]},
        {"name": "boss", "hash": hash_of(BOSS), "surfaces": ["operators"]},
    ]
    (folder / "keys.yaml").write_text(json.dumps({"keys": keys}))
    return {"auth": {"keys_file": str(folder / "keys.yaml")}, **more}


async def documents(gateway: Gateway) -> tuple[dict[str, Any], dict[str, Any]]:
    """The clients' and the operators'."""
    found = [await gateway.client.get(path) for path in ("/openapi.json", "/admin/openapi.json")]
    assert [answer.status_code for answer in found] == [200, 200]
    return found[0].json(), found[1].json()


async def test_everything_that_is_served_is_in_one_of_two_documents() -> None:
    async with serving(FakeBackend()) as gateway:
        clients, operators = await documents(gateway)
        app = gateway.app.control_plane
        assert isinstance(app, FastAPI)
        with warnings.catch_warnings(action="ignore"):  # FastAPI's own ids of operations mean nothing here
            paths = app.openapi()["paths"]
        served = {(path, method) for path, methods in paths.items() for method in methods}
        assert len(served) > 12
        described = [
            (path, method)
            for document in (clients, operators)
            for path in document["paths"]
            for method in document["paths"][path]
        ]
        assert sorted(described) == sorted(served | {(path, "post") for path in INFERENCE})
        theirs = {path for path in operators["paths"] if path.startswith("/admin/")} | {"/metrics"}
        assert set(operators["paths"]) == theirs
        identities = [
            operation["operationId"]
            for document in (clients, operators)
            for path in document["paths"].values()
            for operation in path.values()
        ]
        assert len(identities) == len(set(identities))


async def test_parameters_and_bodies_are_told() -> None:
    async with serving(FakeBackend()) as gateway:
        clients, operators = await documents(gateway)
        (parameter,) = clients["paths"]["/v1/models/{model_id}"]["get"]["parameters"]
        assert (parameter["name"], parameter["in"]) == ("model_id", "path")
        body = clients["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body["required"] == ["model", "messages"]
        assert clients["security"] == []
        assert body["properties"]["model"]["enum"] == ["fake", "alias"]
        key = operators["paths"]["/admin/keys"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert "hash" not in key["properties"]
        assert key["additionalProperties"] is False


async def test_clients_are_told_of_their_models_and_strangers_of_nothing(tmp_path: Path) -> None:
    async with serving(FakeBackend(), FakeBackend("other"), edge=edge(tmp_path)) as gateway:

        async def seen(path: str, key: str | None) -> httpx.Response:
            return await gateway.client.get(path, headers={} if key is None else {"x-api-key": key})

        answer = (await seen("/openapi.json", NARROW)).json()
        body = answer["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body["properties"]["model"]["enum"] == ["other"]
        statuses = {
            (path, key): (await seen(path, key)).status_code
            for path in ("/openapi.json", "/admin/openapi.json")
            for key in (None, "wrong", KEY, BOSS)
        }
        assert list(statuses.values()) == [401, 401, 200, 403, 401, 401, 403, 200]
        assert answer["security"] == [{"bearer": []}, {"key": []}]
        free = {path for path, said in answer["paths"].items() if any(o.get("security") == [] for o in said.values())}
        assert free == {"/livez", "/readyz", "/health", "/version"}


async def test_operators_listener_has_theirs_alone(tmp_path: Path) -> None:
    admin = {"host": "127.0.0.1", "port": 9}
    async with serving(FakeBackend(), edge=edge(tmp_path, admin=admin)) as gateway:
        assert (await gateway.client.get("/admin/openapi.json", headers={"x-api-key": KEY})).status_code == 404
        plane = AdminPlane(gateway.app.gateway, AdminSettings(), gateway.app.control_plane)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(plane), base_url="http://localhost") as client:
            assert (await client.get("/openapi.json")).status_code == 404
            assert "/admin/keys" in (await client.get("/admin/openapi.json")).json()["paths"]
