"""Which requests are taken, by exact path and method, and what the others are told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from config.edge import AdminSettings
from gateway.admin import AdminPlane
from gateway.keys import hash_of, new_key
from tests.fakes import FakeBackend
from tests.gateway.running import CHAT, Gateway, request, serving

KEY, NARROW, BOSS = new_key(), new_key(), new_key()


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1", 404, "not_found"),
        ("POST", "/v1/embeddings", 404, "not_found"),
        ("POST", "/v1/chat/completions/", 404, "not_found"),
        ("POST", "//v1/chat/completions", 404, "not_found"),
        ("POST", "/v1/chat/../completions", 404, "not_found"),
        ("POST", "/V1/chat/completions", 404, "not_found"),
        ("POST", "/v1/chat/completions;a=b", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
        ("GET", "/redoc", 404, "not_found"),
        ("POST", "/tokenize", 404, "not_found"),
        ("GET", "/slots", 404, "not_found"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/chat/completions", 405, "method_not_allowed"),
        ("PUT", "/v1/completions", 405, "method_not_allowed"),
        ("TRACE", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
        ("DELETE", "/v1/models/fake", 405, "method_not_allowed"),
        ("POST", "/metrics", 405, "method_not_allowed"),
    ],
)
async def test_what_is_not_served_is_refused_in_the_dialect(method: str, path: str, status: int, code: str) -> None:
    backend = FakeBackend()
    async with serving(backend) as gateway, gateway.connection() as (reader, writer):
        writer.write(request(b"{}", path=path, method=method))
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert head.startswith(b"http/1.1 %d " % status)
        assert b"\r\ncontent-type: application/json\r\n" in head
        assert b"\r\nx-request-id: " in head
        assert b"access-control" not in head
        assert (b"\r\nallow: " in head) == (status == 405)
        assert code.encode() in await reader.readuntil(b"}}")
        assert backend.requests == []


@pytest.mark.parametrize("query", ["?", "?api-version=2024-10-01"])
async def test_query_strings_do_not_matter(query: str) -> None:
    async with serving(FakeBackend()) as gateway:
        answer = await gateway.client.post(CHAT + query, json={"model": "fake"})
        assert answer.status_code == 200


@pytest.mark.parametrize(
    ("offered", "taken"),
    [
        ("my-id_1.2", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("up-" + "0" * 39, False),
        ("my-up-" + "0" * 39, False),
        ("up-1", True),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl", False),
        ("my.eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJl", False),
        ("a b", False),
        ('a"b', False),
        ("", False),
    ],
    ids=lambda value: str(value)[:10],
)
@pytest.mark.parametrize("path", [CHAT, "/livez", "/nothing"])
async def test_harmless_request_ids_of_clients_are_kept(path: str, offered: str, taken: bool) -> None:
    async with serving(FakeBackend()) as gateway:
        method = "POST" if path == CHAT else "GET"
        answer = await gateway.client.request(method, path, json={"model": "fake"}, headers=[("x-request-id", offered)])
        assert (answer.headers["x-request-id"] == offered) == taken
        assert answer.headers.get_list("x-request-id") == [answer.headers["x-request-id"]]
        again = await gateway.client.request(method, path, json={"model": "fake"})
        assert again.headers["x-request-id"] != answer.headers["x-request-id"]


@pytest.mark.parametrize("path", [CHAT, "/livez", "/metrics", "/v1/models"])
async def test_rebound_names_reach_nothing(path: str) -> None:
    backend = FakeBackend()
    async with serving(backend) as gateway:
        method = "POST" if path == CHAT else "GET"
        answer = await gateway.client.request(method, path, json={"model": "fake"}, headers={"host": "evil.example"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (421, "host_not_allowed")
        assert backend.requests == []


async def test_path_is_what_was_asked_and_not_what_the_host_says() -> None:
    async with serving(FakeBackend()) as gateway:
        for host in ("localhost/livez?x=", "localhost#@x", "localhost:1/metrics"):
            sent = request(b"{}", f"host: {host}", "connection: close", "content-length: 2", path="/nothing")
            answer = await gateway.raw(sent.replace(b"host: localhost\r\n", b""))
            assert answer.startswith(b"HTTP/1.1 421 ")


async def test_too_many_header_fields_are_refused() -> None:
    async with serving(FakeBackend()) as gateway:
        answer = await gateway.client.get("/livez", headers={f"x-{number}": "1" for number in range(100)})
        assert (answer.status_code, answer.json()["error"]["code"]) == (431, "headers_too_large")


def with_keys(folder: Path) -> dict[str, Any]:
    file = folder / "keys.yaml"
    narrow = {"name": "narrow", "hash": hash_of(NARROW), "surfaces": ["openai"], "addresses": ["127.0.0.0/8"]}
    boss = {"name": "boss", "hash": hash_of(BOSS), "surfaces": ["operators"]}
    file.write_text(json.dumps({"keys": [{"name": "alice", "hash": hash_of(KEY)}, narrow, boss]}))
    return {"auth": {"keys_file": str(file)}}


def told(gateway: Gateway) -> list[tuple[str, str, int, str]]:
    """Method, path, status and key of the lines since the last look."""
    lines = gateway.lines("control")
    gateway.written.clear()
    assert all(line["request_id"].startswith("req-") and 0 <= line["duration_ms"] < 60_000 for line in lines)
    return [(line["method"], line["path"], line["status"], line["key"]) for line in lines]


async def test_every_request_that_is_no_inference_post_leaves_a_line(tmp_path: Path) -> None:
    async with serving(FakeBackend(), edge=with_keys(tmp_path)) as gateway:

        async def ask(method: str, path: str, key: str = "", **headers: str) -> None:
            await gateway.client.request(method, path, headers={**({"x-api-key": key} if key else {}), **headers})

        await ask("GET", "/v1/models?limit=1", KEY)
        await ask("GET", "/v1/models/fake", NARROW)
        await ask("GET", f"/v1/models/{KEY}", KEY)
        await ask("GET", "/admin/status", BOSS)
        await ask("GET", "/version")
        assert told(gateway) == [
            ("GET", "/v1/models", 200, "alice"),
            ("GET", "/v1/models/*", 200, "narrow"),
            ("GET", "/v1/models/*", 404, "alice"),
            ("GET", "/admin/status", 200, "boss"),
            ("GET", "/version", 200, ""),
        ]
        await ask("GET", f"/nothing/{KEY}?key={KEY}")
        await ask("GET", "/v1/models", new_key())
        await ask("POST", "/admin/keys", NARROW)
        await ask("POST", "/admin/keys", KEY)
        await ask("GET", "/metrics")
        await ask("GET", CHAT, KEY)
        await ask("GET", "/livez", host="evil.example")
        assert told(gateway) == [
            ("GET", "/*/*", 404, ""),
            ("GET", "/v1/models", 401, ""),
            ("POST", "/admin/keys", 403, "narrow"),
            ("POST", "/admin/keys", 403, "alice"),
            ("GET", "/metrics", 401, ""),
            ("GET", CHAT, 405, ""),
            ("GET", "/livez", 421, ""),
        ]
        await gateway.chat()
        assert told(gateway) == []


async def test_probes_that_go_well_leave_none(tmp_path: Path) -> None:
    async with serving(FakeBackend(), edge=with_keys(tmp_path)) as gateway:
        for path in ("/livez", "/readyz", "/health", "/metrics"):
            assert (await gateway.client.get(path, headers={"x-api-key": BOSS})).status_code == 200
        assert told(gateway) == []
        gateway.readiness.draining = True
        for path in ("/readyz", "/health"):
            await gateway.client.get(path)
        assert told(gateway) == [("GET", "/readyz", 503, ""), ("GET", "/health", 503, "")]


async def test_line_has_the_id_that_the_answer_has() -> None:
    async with serving(FakeBackend()) as gateway:
        answer = await gateway.client.get("/v1/models", headers={"x-request-id": "mine"})
        assert [line["request_id"] for line in gateway.lines("control")] == ["mine"] == [answer.headers["x-request-id"]]


async def test_requests_at_the_operators_listener_leave_lines_too() -> None:
    async with serving(FakeBackend(), edge={"admin": {}}) as gateway:
        operators = AdminPlane(gateway.app.gateway, AdminSettings(), gateway.app.control_plane)
        transport = httpx.ASGITransport(operators)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            for path in ("/admin/status", "/metrics", "/v1/models"):
                await client.get(path)
        assert told(gateway) == [("GET", "/admin/status", 200, ""), ("GET", "/v1/models", 404, "")]


async def test_request_that_fails_unexpectedly_leaves_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(FakeBackend(), edge=with_keys(tmp_path)) as gateway:
        monkeypatch.setattr(gateway.app.gateway.entrance, "principal", None)
        for path in ("/metrics", "/v1/models"):
            assert (await gateway.client.get(path, headers={"x-api-key": KEY})).status_code == 500
        assert told(gateway) == [("GET", "/metrics", 500, ""), ("GET", "/v1/models", 500, "")]
