"""/admin/keys over real connections: what operators can do with keys, and nobody else."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from config.edge import AdminSettings
from config.redis import RedisSettings
from gateway import keyedits
from gateway.admin import AdminPlane
from gateway.keys import hash_of, new_key
from gateway.keystore import store_at
from tests.fakes import FakeBackend
from tests.gateway.running import CHAT, Gateway, body, serving
from tests.redis_server import running_redis

BOSS, CLIENT = new_key(), new_key()
KEYS = "/admin/keys"


def prepared(place: str, redis: RedisSettings | None = None) -> None:
    """An operator's key and a client's."""
    store = store_at(place, redis or RedisSettings())
    store.change(keyedits.add({"name": "boss", "hash": hash_of(BOSS), "surfaces": ["operators"]}, "x", 0.0))
    store.change(keyedits.add({"name": "client", "hash": hash_of(CLIENT)}, "x", 0.0))


def edge(folder: Path, **more: Any) -> dict[str, Any]:
    place = str(folder / "keys.db")
    prepared(place)
    return {"auth": {"keys_store": place}, "limits": {"tiers": {"gold": {"concurrent": 9}}}, **more}


async def boss(gateway: Gateway, method: str, path: str = KEYS, **fields: Any) -> httpx.Response:
    return await gateway.client.request(method, path, headers={"x-api-key": BOSS}, json=fields or None)


async def chat(gateway: Gateway, key: str) -> int:
    return (await gateway.client.post(CHAT, json=body(), headers={"x-api-key": key})).status_code


async def until(gateway: Gateway, key: str, status: int) -> None:
    async with asyncio.timeout(20):
        while await chat(gateway, key) != status:
            pass


async def test_key_is_made_used_replaced_and_revoked(tmp_path: Path) -> None:
    async with serving(FakeBackend(), edge=edge(tmp_path)) as gateway:
        rights: dict[str, Any] = {"tier": "gold", "limits": {"requests_per_minute": 50_000}, "models": ["fake"]}
        made = await boss(gateway, "POST", name="alice", **rights)
        assert made.status_code == 201
        key = made.json()["key"]
        await until(gateway, key, 200)
        listed = (await boss(gateway, "GET")).json()["keys"]
        assert [entry["name"] for entry in listed] == ["boss", "client", "alice"]
        assert listed[2] == {"name": "alice", **rights}
        replaced = (await boss(gateway, "POST", f"{KEYS}/alice/rotate")).json()["key"]
        await until(gateway, replaced, 200)
        assert await chat(gateway, key) == 401
        assert (await boss(gateway, "DELETE", f"{KEYS}/alice")).status_code == 204
        await until(gateway, replaced, 401)


async def test_log_says_who_changed_which_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway.api.keys")
    async with serving(FakeBackend(), edge=edge(tmp_path)) as gateway:
        made = (await boss(gateway, "POST", name="alice")).json()["key"]
        replaced = (await boss(gateway, "POST", f"{KEYS}/alice/rotate")).json()["key"]
        await boss(gateway, "DELETE", f"{KEYS}/alice")
        # Nothing was done.
        await boss(gateway, "POST", name="client")
        await boss(gateway, "DELETE", f"{KEYS}/alice")
        await gateway.client.delete(f"{KEYS}/boss", headers={"x-api-key": CLIENT})
        lines = gateway.lines("control")
        ids = [line["request_id"] for line in lines]
    told = [record.getMessage() for record in caplog.records if record.name == "gateway.api.keys"]
    assert told == [
        f"key alice was {done} by boss (request {request_id})"
        for done, request_id in zip(("made", "rotated", "revoked"), ids, strict=False)
    ]
    assert [(line["status"], line["key"]) for line in lines[3:]] == [(409, "boss"), (404, "boss"), (403, "client")]
    assert not any(key in caplog.text + "".join(gateway.written) for key in (made, replaced, BOSS, CLIENT))


async def test_log_says_where_nobody_was_asked_for_a_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gateway.api.keys")
    async with serving(FakeBackend(), edge=edge(tmp_path, admin={})) as gateway:
        operators = AdminPlane(gateway.app.gateway, AdminSettings(), gateway.app.control_plane)
        transport = httpx.ASGITransport(operators)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            assert (await client.post(KEYS, json={"name": "alice"})).status_code == 201
    assert "key alice was made by an operator without a key (request req-" in caplog.text


async def test_clients_and_strangers_manage_nothing(tmp_path: Path) -> None:
    async with serving(FakeBackend(), edge=edge(tmp_path)) as gateway:
        for key, code in ((CLIENT, "surface_not_allowed"), (new_key(), "invalid_api_key"), ("", "invalid_api_key")):
            headers = {"x-api-key": key} if key else {}
            for method, path in (
                ("GET", KEYS),
                ("POST", KEYS),
                ("DELETE", f"{KEYS}/boss"),
                ("POST", f"{KEYS}/boss/rotate"),
            ):
                answer = await gateway.client.request(method, path, headers=headers, json={"name": "eve"})
                assert answer.json()["error"]["code"] == code
        assert await chat(gateway, BOSS) == 403
        assert len((await boss(gateway, "GET")).json()["keys"]) == 2


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"name": "client"}, 409, "key_name_taken", "name"),
        ({"name": "a b"}, 400, "invalid_request", "name"),
        ({"name": 7}, 400, "invalid_request", "name"),
        ({"name": "x", "tier": "silver"}, 400, "invalid_request", "tier"),
        ({"name": "x", "limits": {"requests_per_minute": 0}}, 400, "invalid_request", "limits.requests_per_minute"),
        ({"name": "x", "addresses": ["10.0.0.0/99"]}, 400, "invalid_request", "addresses.0"),
        ({"name": "x", "hash": hash_of("mine")}, 400, "invalid_request", "hash"),
        ({"name": "x", "expires": "soon"}, 400, "invalid_request", "expires"),
        ({"name": "x", "expires": "2020-01-01"}, 400, "invalid_request", "expires"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_mistakes_name_the_field(
    tmp_path: Path, fields: dict[str, Any], status: int, code: str, param: str
) -> None:
    async with serving(FakeBackend(), edge=edge(tmp_path)) as gateway:
        answer = await boss(gateway, "POST", **fields)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"], error["param"]) == (status, code, param)
        assert len((await boss(gateway, "GET")).json()["keys"]) == 2


async def test_unknown_names_and_bodies_that_are_none(tmp_path: Path) -> None:
    async with serving(FakeBackend(), edge=edge(tmp_path)) as gateway:
        for method, path in (("DELETE", f"{KEYS}/nobody"), ("POST", f"{KEYS}/nobody/rotate")):
            assert (await boss(gateway, method, path)).json()["error"]["code"] == "key_not_found"
        headers = {"x-api-key": BOSS, "content-type": "application/json"}
        for content in (b"", b"[", b"[" * 60_000, b'{"name":"\xff"}', b"[]", b'"a"', b"9" * 5000):
            answer = await gateway.client.post(KEYS, content=content, headers=headers)
            assert answer.json()["error"]["code"] == "invalid_request"
        answer = await gateway.client.post(KEYS, content=b"x" * 70_000, headers=headers)
        assert answer.json()["error"]["code"] == "request_too_large"
        plain = await gateway.client.post(
            KEYS, content=b"{}", headers={"x-api-key": BOSS, "content-type": "text/plain"}
        )
        assert plain.status_code == 415


async def test_gateway_without_keys_has_none_to_manage() -> None:
    async with serving(FakeBackend()) as gateway:
        answer = await gateway.client.get(KEYS)
        assert answer.status_code == 404


async def test_replicas_share_keys_at_redis(tmp_path: Path) -> None:
    with running_redis(tmp_path / "redis") as redis:
        prepared("redis", RedisSettings(url=redis.url))
        settings = {"auth": {"keys_store": "redis"}, "redis": {"url": redis.url, "timeout_ms": 1000}}
        async with serving(FakeBackend(), edge=settings) as one, serving(FakeBackend(), edge=settings) as other:
            key = (await boss(one, "POST", name="alice")).json()["key"]
            await until(other, key, 200)
            assert (await boss(other, "DELETE", f"{KEYS}/alice")).status_code == 204
            await until(one, key, 401)
            # A Redis that has lost its keys locks nobody out.
            redis.command("FLUSHALL")
            assert await chat(one, CLIENT) == 200
