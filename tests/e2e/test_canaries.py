"""Secrets and prompts stay where they belong: 24 strings that nothing else contains are sent in every way there is, and
looked for in everything that the gateway writes and tells."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.base import Usage
from config.load import load
from gateway.auth import keys_of, principals
from gateway.cli import main
from gateway.keys import hash_of, new_key
from gateway.slot import Slot
from tests.e2e.gateway import GatewayUnderTest, running_gateway
from tests.e2e.witness import witnessing
from tests.engine import PATIENCE_SECONDS, wait_for
from tests.redis_server import running_redis

CHAT = "/v1/chat/completions"
GOOD, EXPIRED, NARROW, UNKNOWN = (new_key() for _ in range(4))
WEAK, BASIC, QUERY, COOKIE, ADMIN, REDIS = (f"canary-{number}-8c1f" for number in range(6))
JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.canary-jwt-signature"
MISTYPED = GOOD[:-1]
SECRETS = (GOOD, EXPIRED, NARROW, UNKNOWN, MISTYPED, WEAK, BASIC, QUERY, COOKIE, ADMIN, REDIS, JWT)
PROMPTS = {name: f"prompt-canary-{name}-31d7" for name in (
    "fine", "stream", "broken", "deep", "stop", "tool", "user", "refused", "failed", "cut", "left", "model",
)}  # fmt: skip


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayUnderTest]:
    entries = [
        {
            "name": "good",
            "hash": hash_of(GOOD),
            "limits": {"requests_per_minute": 100},
            "surfaces": ["openai", "operators"],
        },
        {"name": "weak", "hash": hash_of(WEAK)},
        {"name": "expired", "hash": hash_of(EXPIRED), "expires": "2020-01-01"},
        {"name": "narrow", "hash": hash_of(NARROW), "addresses": ["10.0.0.0/8"]},
    ]
    (tmp_path / "keys.yaml").write_text(json.dumps({"keys": entries}))
    with witnessing(0.0, Usage(3, 2)) as witness, running_redis(tmp_path / "redis", "--requirepass", REDIS) as redis:
        url = redis.url.replace("redis://", f"redis://:{REDIS}@")
        config = (
            f"auth: {{keys_file: keys.yaml}}\nredis: {{url: '{url}', timeout_ms: 1000}}\n"
            f"models: [{{name: m, gguf: {{openai: 'http://127.0.0.1:{witness.port}'}}}}]\n"
        )
        with running_gateway(tmp_path, config) as gateway:
            wait_for(gateway.ready)
            yield gateway


def chat(text: str, **fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], **fields}


def with_keys(http: httpx.Client) -> Iterator[httpx.Response]:
    """Every key in every place, right and wrong."""
    for key in (GOOD, EXPIRED, NARROW, UNKNOWN, MISTYPED, WEAK, JWT):
        yield http.post(CHAT, json=chat("hi"), headers={"authorization": f"Bearer {key}"})
        yield http.post(CHAT, json=chat("hi"), headers={"x-api-key": key})
        yield http.get("/v1/models", headers={"authorization": f"bearer {key}"})
        yield http.get("/metrics", headers={"x-api-key": key})
        # Told back to who sent it, as every unknown model is; written nowhere.
        http.get(f"/v1/models/{key}", headers={"x-api-key": GOOD})
    yield http.post(CHAT, json=chat("hi"), headers={"authorization": f"Bearer {GOOD}", "x-api-key": UNKNOWN})
    yield http.post(CHAT, json=chat("hi"), headers=[("x-api-key", GOOD), ("x-api-key", UNKNOWN)])
    yield http.post(CHAT, json=chat("hi"), headers={"authorization": f"Basic {BASIC}"})
    yield http.post(f"{CHAT}?api_key={QUERY}", json=chat("hi"))
    yield http.get(f"/nothing/{QUERY}?key={QUERY}")
    yield http.post(CHAT, json=chat("hi"), headers={"cookie": f"session={COOKIE}"})
    yield http.get("/admin/keys", headers={"x-admin-key": ADMIN, "x-api-key": ADMIN})


def with_prompts(http: httpx.Client) -> Iterator[httpx.Response]:
    """Prompts in answers that go well and in every way to fail."""
    yield http.post(CHAT, json=chat(PROMPTS["fine"]))
    yield http.post(CHAT, json=chat(PROMPTS["stream"], stream=True))
    yield http.post(CHAT, content=json.dumps(chat(PROMPTS["broken"])).encode()[:-1])
    yield http.post(CHAT, content=b'{"model":"m","' + PROMPTS["deep"].encode() + b'":' + b"[" * 500 + b"]" * 500 + b"}")
    yield http.post(CHAT, json=chat("hi", stop=[PROMPTS["stop"] * 100]))
    yield http.post(CHAT, json=chat("hi", tools=[PROMPTS["tool"]] * 2000))
    yield http.post(CHAT, json=chat("hi", user=PROMPTS["user"], n=PROMPTS["user"]))
    yield http.post(CHAT, json=chat(f"echo 400 {PROMPTS['refused']}"))
    yield http.post(CHAT, json=chat(f"echo 500 {PROMPTS['failed']}"))
    yield http.post(CHAT, json=chat(f"cut {PROMPTS['cut']}"))
    yield http.post(CHAT, json={**chat("hi"), "model": PROMPTS["model"]})


def test_no_canary_leaves_the_cage(gateway: GatewayUnderTest, tmp_path: Path) -> None:
    assert len({*SECRETS, *PROMPTS.values()}) == 24
    http = gateway.http
    told = [answer.text + repr(sorted(answer.headers.items())) for answer in with_keys(http)]
    http.headers.update({"authorization": f"Bearer {GOOD}", "content-type": "application/json"})
    answers = list(with_prompts(http))
    assert {200, 400, 404, 502} <= {answer.status_code for answer in answers}
    leave(gateway)
    told.append(http.get("/metrics").text)
    told.append(http.get("/readyz").text)
    gateway.process.terminate()
    gateway.process.wait(timeout=PATIENCE_SECONDS)
    written = gateway.log.read_text() + gateway.access_log.read_text()
    assert written.count('"event":"request"') >= len(answers)
    everything = written + "".join(told)
    leaked = [secret for secret in SECRETS if secret in everything]
    leaked += [prompt for prompt in PROMPTS.values() if prompt in written + told[-1] + told[-2]]
    assert leaked == []
    # A client is told of its own text at most the field it is in; its engine's words about it are its own.
    for name, answer in zip((name for name in PROMPTS if name != "left"), answers, strict=True):
        if name not in {"refused", "deep", "model"}:
            assert PROMPTS[name] not in answer.text


def leave(gateway: GatewayUnderTest) -> None:
    """A client that is gone before its answer."""
    content = json.dumps(chat(PROMPTS["left"])).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\nx-api-key: {GOOD}\r\ncontent-type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2]))) as connection:
        connection.sendall(f"{head}content-length: {len(content) + 9}\r\n\r\n".encode() + content)


def test_settings_show_no_secret(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "upshift.yaml"
    (tmp_path / "keys.yaml").write_text(json.dumps({"keys": [{"name": "good", "hash": hash_of(GOOD)}]}))
    file.write_text(f"auth: {{keys_file: keys.yaml}}\nredis: {{url: 'redis://u:{REDIS}@a,redis://:{REDIS}@b:1/2'}}\n")
    settings = load(file).settings
    assert main(["config", "show", "--config", str(file)]) == 0
    found = principals(settings, keys_of(settings), Slot)
    shown = capsys.readouterr().out
    assert "redis://***@a,redis://***@b:1/2" in shown
    for text in (shown, repr(settings), repr(settings.redis.urls), repr(found)):
        assert REDIS not in text
        assert GOOD not in text


@pytest.mark.parametrize("url", [f"redis://u:{REDIS}@h/x", f"http://:{REDIS}@h", f"redis://:{REDIS}@"])
def test_wrong_url_of_redis_is_not_repeated(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "upshift.yaml"
    file.write_text(f"redis: {{url: '{url}'}}\n")
    assert main(["config", "check", str(file)]) == 1
    shown = capsys.readouterr()
    assert "redis.url: should be redis://" in shown.err
    assert REDIS not in shown.out + shown.err
