"""Attack classes that belong to no single module; docs/security.md names the test of each class."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from gateway.auth import Authenticator, Principal
from gateway.dataplane import INFERENCE
from gateway.keys import hash_of, new_key
from tests.fakes import FakeBackend
from tests.gateway.running import CHAT, JSON, Gateway, body, request, serving

KEY = new_key()
# What is anybody's: whether the process lives and serves.
OPEN = {"/livez", "/readyz", "/health", "/version"}


def with_keys(folder: Path) -> dict[str, Any]:
    file = folder / "keys.yaml"
    file.write_text(json.dumps({"keys": [{"name": "alice", "hash": hash_of(KEY)}]}))
    return {"auth": {"keys_file": str(file)}}


def paths_of(gateway: Gateway) -> set[str]:
    """Every path that is served, however it came to be."""
    control_plane = gateway.app.control_plane
    assert isinstance(control_plane, FastAPI)
    with warnings.catch_warnings(action="ignore"):  # ids of operations mean nothing here
        described = control_plane.openapi()["paths"]
    return {path.replace("{model_id}", "fake") for path in described} | set(INFERENCE)


async def test_no_path_but_health_is_answered_without_a_key(tmp_path: Path) -> None:
    backend = FakeBackend()
    async with serving(backend, edge=with_keys(tmp_path)) as gateway:
        paths = paths_of(gateway)
        assert OPEN | {"/metrics", "/v1/models"} <= paths
        for path in paths:
            for method in ("GET", "POST"):
                status = (await gateway.client.request(method, path, json=body())).status_code
                assert status in ({200, 405} if path in OPEN else {401, 405}), f"{method} {path}: {status}"
        for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW"):
            for path in paths - OPEN:
                status = (await gateway.client.request(method, path)).status_code
                assert status in {400, 401, 404, 405}, f"{method} {path}: {status}"
    assert backend.requests == []


@pytest.mark.parametrize(
    "path",
    [
        *("//v1/models", "/v1/../v1/models", "/v1/%2e%2e/v1/models", "/./v1/models", "/V1/models", "/v1/models/"),
        *("/v1/models;a", "/v1//models", "/%76%31/models", "/livez/../v1/models", "/livez/../metrics"),
        *("/livez%2f..%2fmetrics", r"/v1\models", "/livez;/metrics", "//v1/chat/completions"),
        *("/v1/chat/completions/", "/V1/chat/completions", "/v1/chat/completions;a"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_other_spellings_of_a_path_are_no_way_around_the_key(tmp_path: Path, method: str, path: str) -> None:
    backend = FakeBackend()
    async with serving(backend, edge=with_keys(tmp_path)) as gateway:
        answer = await gateway.raw(request(None, "connection: close", path=path, method=method))
        assert answer.split(b" ", 2)[1] in {b"400", b"401", b"404", b"405"}
    assert backend.requests == []


async def test_authentication_that_fails_lets_nobody_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Authenticator, headers: Mapping[bytes, bytes]) -> Principal:
        raise RuntimeError(str(headers))

    backend = FakeBackend()
    async with serving(backend, edge=with_keys(tmp_path)) as gateway:
        monkeypatch.setattr(Authenticator, "principal", broken)
        for path in (CHAT, "/v1/models", "/metrics"):
            method = "POST" if path == CHAT else "GET"
            sent = {"authorization": f"Bearer {KEY}"}
            async with httpx.AsyncClient(base_url=gateway.client.base_url, trust_env=False) as client:
                answer = await client.request(method, path, json=body(), headers=sent)
            assert answer.status_code == 500
            assert KEY not in answer.text
    assert backend.requests == []


@pytest.mark.parametrize("carrier", ["query", "cookie", "api-key", "x-goog-api-key", "basic"])
async def test_key_in_any_other_place_is_no_key(tmp_path: Path, carrier: str) -> None:
    headers = {
        "query": {},
        "cookie": {"cookie": f"api_key={KEY}; authorization=Bearer {KEY}"},
        "basic": {"authorization": f"Basic {KEY}"},
    }.get(carrier, {carrier: KEY})
    path = f"{CHAT}?api_key={KEY}&key={KEY}" if carrier == "query" else CHAT
    async with serving(FakeBackend(), edge=with_keys(tmp_path)) as gateway:
        assert (await gateway.client.post(path, json=body(), headers=headers)).status_code == 401


@pytest.mark.parametrize(
    "model",
    [
        *(
            "../../etc/passwd",
            "/etc/passwd",
            "file:///etc/passwd",
            "hf.co/x/y:Q4",
            "fake\x00",
            "FAKE",
            "fake ",
            "./fake",
        ),
        *("http://169.254.169.254/", "a" * 10_000, "{{7*7}}", "'; DROP TABLE keys; --", "\r\nx-injected: 1"),
    ],
)
async def test_model_is_a_name_and_nothing_else(model: str) -> None:
    backend = FakeBackend()
    async with serving(backend) as gateway:
        answer = await gateway.chat(model=model)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
        assert "x-injected" not in answer.headers
        assert [line["model"] for line in gateway.lines()] == ["unknown"]
    assert backend.requests == []


@pytest.mark.parametrize(
    "path",
    [
        *("/invocations", "/pause", "/resume", "/sleep", "/wake_up", "/collective_rpc", "/abort_requests"),
        *("/update_weights", "/load", "/pooling", "/classify", "/start_profile", "/server_info"),
        *("/reset_prefix_cache", "/is_sleeping", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/slots"),
        *("/props", "/lora-adapters", "/completion", "/infill", "/api/pull", "/api/push", "/api/create"),
        *("/api/copy", "/api/delete", "/api/blobs/sha256:0", "/docs", "/redoc", "/debug/pprof"),
        *("/config", "/.env", "/v1/internal/x"),
    ],
)
async def test_engines_other_endpoints_are_not_reachable(path: str) -> None:
    backend = FakeBackend()
    async with serving(backend) as gateway:
        for method in ("GET", "POST", "PUT", "DELETE", "HEAD"):
            answer = await gateway.client.request(method, path, content=b'{"model": "fake"}', headers=JSON)
            assert answer.status_code in {404, 405, 501}, (method, path)
    assert backend.requests == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("x-request-id", "a\tb"), ("x-request-id", "a" * 129), ("x-request-id", '"},{"x":"'), ("x-request-id", "\xe9")],
)
async def test_what_clients_send_comes_back_in_no_header_or_log(name: str, value: str) -> None:
    async with serving(FakeBackend()) as gateway:
        sent = request(None, f"content-length: {len(json.dumps(body()))}", "connection: close", f"{name}: {value}")
        answer = await gateway.raw(sent)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert value.encode("utf-8") not in answer
        (line,) = gateway.lines()
        assert line["request_id"].startswith("req-")
        assert value not in json.dumps(gateway.lines())


async def test_browsers_are_told_of_no_permission() -> None:
    async with serving(FakeBackend()) as gateway:
        asking = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
        for method in ("OPTIONS", "GET", "POST"):
            answer = await gateway.client.request(method, CHAT, json=body(), headers=asking)
            assert not [field for field in answer.headers if field.startswith("access-control-")]
        assert (
            await gateway.client.post(CHAT, json=body(), headers={"origin": "https://evil.example"})
        ).status_code == 403
        simple = {"content-type": "text/plain"}
        assert (await gateway.client.post(CHAT, content=json.dumps(body()), headers=simple)).status_code == 415
