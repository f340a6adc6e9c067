"""Keys and limits as clients meet them: who gets in, what is told, and that every call is settled to what it took."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.base import Usage
from backends.errors import (
    BackendError,
    BackendLoading,
    BackendOverloaded,
    BackendProtocolError,
    BackendUnavailable,
)
from gateway.keys import hash_of, new_key
from tests.fakes import FakeBackend, chat_body, chat_events
from tests.gateway.running import CHAT, Gateway, body, request, serving

ALICE, BOB = new_key(), new_key()


def edge(folder: Path, shared: dict[str, Any] | None = None, **limits: Any) -> dict[str, Any]:
    """Alice may use everything within `limits`, Bob only the model `other`; both within `shared`."""
    file = folder / "keys.yaml"
    entries = [
        {"name": "alice", "hash": hash_of(ALICE), "limits": limits},
        {"name": "bob", "hash": hash_of(BOB), "models": ["other"]},
    ]
    file.write_text(json.dumps({"keys": entries}))
    return {"auth": {"keys_file": str(file)}, "limits": shared or {}}


async def ask(gateway: Gateway, key: str | None = ALICE, **fields: Any) -> httpx.Response:
    headers = {} if key is None else {"authorization": f"Bearer {key}"}
    return await gateway.client.post(CHAT, json=body(**fields), headers=headers)


def remaining(answer: httpx.Response, kind: str) -> int:
    return int(answer.headers[f"x-ratelimit-remaining-{kind}"])


async def test_only_keys_get_in_and_refusals_read_no_body(tmp_path: Path) -> None:
    backend = FakeBackend()
    async with serving(backend, edge=edge(tmp_path)) as gateway:
        for key in (None, "wrong", ALICE[:-1], ALICE + "x"):
            answer = await ask(gateway, key)
            assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
            assert answer.headers["www-authenticate"] == "Bearer"
            assert key is None or key not in answer.text
        assert backend.requests == []
        assert (await ask(gateway)).status_code == 200
        assert (await gateway.client.post(CHAT, json=body(), headers={"x-api-key": ALICE})).status_code == 200
        assert [line["key"] for line in gateway.lines()] == ["", "", "", "", "alice", "alice"]
        assert ALICE not in "".join(gateway.written)


async def test_wrong_key_is_refused_before_its_body_is_waited_for(tmp_path: Path) -> None:
    async with serving(FakeBackend(), edge=edge(tmp_path)) as gateway, gateway.connection() as (reader, writer):
        writer.write(request(b"", "content-length: 100", "authorization: Bearer nobody"))
        assert (await reader.readline()).startswith(b"HTTP/1.1 401 ")


async def test_two_keys_in_one_request_are_refused(tmp_path: Path) -> None:
    async with serving(FakeBackend(), edge=edge(tmp_path)) as gateway:
        headers = [("authorization", f"Bearer {ALICE}"), ("authorization", f"Bearer {BOB}")]
        for method, path in (("POST", CHAT), ("GET", "/v1/models")):
            answer = await gateway.client.request(method, path, headers=headers, json=body())
            assert answer.status_code == 401


async def test_key_sees_and_uses_its_models_only(tmp_path: Path) -> None:
    async with serving(FakeBackend("fake"), FakeBackend("other"), edge=edge(tmp_path)) as gateway:
        answer = await ask(gateway, BOB)
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "model_not_allowed")
        assert (await ask(gateway, BOB, model="alias")).status_code == 403
        assert (await ask(gateway, BOB, model="other")).status_code == 200
        bob = {"authorization": f"Bearer {BOB}"}
        listed = (await gateway.client.get("/v1/models", headers=bob)).json()["data"]
        assert [model["id"] for model in listed] == ["other"]
        assert (await gateway.client.get("/v1/models/alias", headers=bob)).status_code == 403
        assert (await gateway.client.get("/v1/models")).status_code == 401
        assert (await gateway.client.get("/livez")).status_code == 200


async def test_requests_are_limited_to_the_unit(tmp_path: Path) -> None:
    backend = FakeBackend()
    async with serving(backend, edge=edge(tmp_path, requests_per_minute=3)) as gateway:
        answers = [await ask(gateway) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        assert [remaining(answer, "requests") for answer in answers] == [2, 1, 0, 0, 0]
        assert answers[0].headers["x-ratelimit-limit-requests"] == "3"
        assert answers[3].json()["error"]["code"] == "rate_limit_exceeded"
        assert 59 <= int(answers[3].headers["retry-after"]) <= 61
        assert len(backend.requests) == 3
        assert await gateway.metric("upshift_rate_limited_total", limit="requests") == 2


# (what the engine does, whether a stream, whether the prompt counts by its length, further tokens)
ENDS: dict[str, tuple[FakeBackend, bool, bool, int]] = {
    "json": (FakeBackend(script=[chat_body(usage=Usage(70, 30))]), False, False, 100),
    "stream with usage": (FakeBackend(script=chat_events("a", usage=Usage(70, 30))), True, False, 100),
    "stream without usage": (FakeBackend(script=chat_events("a", "b", "c")), True, True, 5),
    "no engine": (FakeBackend(before=[BackendUnavailable("x")]), False, False, 0),
    "broken stream": (FakeBackend(script=[*chat_events("a")[:1], BackendUnavailable("x")]), True, True, 1),
}


def prompt_tokens(answer: httpx.Response) -> int:
    return -(-len(answer.request.content) // 4)


@pytest.mark.parametrize("name", ENDS)
async def test_tokens_are_settled_to_what_was_taken(tmp_path: Path, name: str) -> None:
    backend, stream, with_prompt, more = ENDS[name]
    async with serving(backend, edge=edge(tmp_path, tokens_per_minute=10_000)) as gateway:
        answer = await ask(gateway, max_tokens=500, stream=stream)
        await gateway.settled()
        backend.before, backend.script = (), None
        after = await ask(gateway, max_tokens=0)
        taken = more + prompt_tokens(answer) * with_prompt
        spent = 10_000 - remaining(after, "tokens") - prompt_tokens(after)
        # Ten tokens come back in 60 ms.
        assert max(taken - 50, 0) <= spent <= taken


async def test_clients_that_leave_give_their_place_back(tmp_path: Path) -> None:
    backend = FakeBackend(before=[asyncio.Event()])
    key = f"authorization: Bearer {ALICE}"
    content = json.dumps(body()).encode()
    async with serving(backend, edge=edge(tmp_path, concurrent=2)) as gateway:
        async with gateway.connection() as (_, first), gateway.connection() as (_, second):
            for writer in (first, second):
                writer.write(request(content, key, f"content-length: {len(content)}"))
            await asyncio.sleep(0)
            while len(backend.requests) < 2:  # noqa: ASYNC110 - the fake has one event, for its first request
                await asyncio.sleep(0)
            refused = await ask(gateway)
            assert (refused.status_code, "at the same time" in refused.text) == (429, True)
        await gateway.settled()
        backend.before = ()
        assert (await ask(gateway)).status_code == 200


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({"max_tokens": 50}, 50),
        ({"max_tokens": 5, "max_completion_tokens": 50}, 50),
        ({"max_output_tokens": 50}, 50),
        ({"max_tokens": 10, "n": 5}, 50),
        ({"max_tokens": 10, "n": 2, "best_of": 5}, 50),
        ({"max_tokens": 5, "n_predict": 50}, 50),
        ({"max_tokens": 10, "n": 1, "n_cmpl": 5}, 50),
        ({"max_tokens": 10, "prompt": ["a", "b", "c", "d", "e"]}, 50),
        ({"max_tokens": 5, "n": 2, "prompt": [[1, 2], [3], "x", [4], [5]]}, 50),
        ({"max_tokens": 50, "prompt": [1, 2, 3]}, 50),
    ],
    ids=str,
)
async def test_every_way_to_ask_for_more_is_counted(tmp_path: Path, fields: dict[str, Any], asked: int) -> None:
    async with serving(FakeBackend(), edge=edge(tmp_path, tokens_per_minute=10_000)) as gateway:
        answer = await ask(gateway, **fields)
        assert remaining(answer, "tokens") == 10_000 - prompt_tokens(answer) - asked


@pytest.mark.parametrize("total", [5000, 350])
@pytest.mark.parametrize("fields", [{}, {"max_tokens": None, "n": None}, {"n": 3}], ids=str)
async def test_request_without_a_cap_gets_what_it_may_take(tmp_path: Path, fields: dict[str, Any], total: int) -> None:
    backend = FakeBackend()
    shared = {"models": {"fake": {"max_tokens_per_request": 999}}, "total": {"max_tokens_per_request": total}}
    limits = edge(tmp_path, shared, max_tokens_per_request=400, tokens_per_minute=10_000)
    async with serving(backend, edge=limits) as gateway:
        answer = await ask(gateway, **fields)
        choices = fields.get("n") or 1
        room = (min(400, total) - prompt_tokens(answer)) // choices
        assert json.loads(backend.requests[0].body)["max_tokens"] == room
        # What is reserved for it is what is reserved for any other.
        assert remaining(answer, "tokens") == 10_000 - prompt_tokens(answer) - min(256, room) * choices


async def test_request_with_a_cap_is_passed_on_as_it_is(tmp_path: Path) -> None:
    backend = FakeBackend()
    async with serving(backend, edge=edge(tmp_path, max_tokens_per_request=400)) as gateway:
        for name in ("max_tokens", "max_completion_tokens", "n_predict"):
            answer = await ask(gateway, ALICE, **{name: 7})
            assert backend.requests[-1].body == answer.request.content
        assert (await ask(gateway, n=128)).status_code == 200
        assert (await ask(gateway, n=128, messages=["x" * 1600])).status_code == 400


async def test_completion_without_a_cap_keeps_openais_default(tmp_path: Path) -> None:
    backend = FakeBackend()
    async with serving(backend, edge=edge(tmp_path, max_tokens_per_request=400)) as gateway:
        asked = {"model": "fake", "prompt": "a"}
        for more, sent in (({}, 16), ({"max_tokens": 90}, 90)):
            await gateway.client.post("/v1/completions", json=asked | more, headers={"x-api-key": ALICE})
            assert json.loads(backend.requests[-1].body)["max_tokens"] == sent


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens", "n"])
@pytest.mark.parametrize("value", ["5", 5.0, True, [5]], ids=repr)
async def test_caps_of_another_type_are_refused_by_name(name: str, value: object) -> None:
    async with serving(FakeBackend()) as gateway:
        answer = await gateway.chat(**{name: value})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)


async def test_models_and_the_whole_gateway_are_limited_over_all_keys(tmp_path: Path) -> None:
    shared = {"models": {"other": {"requests_per_minute": 1}}, "total": {"requests_per_minute": 3}}
    async with serving(FakeBackend(), FakeBackend("other"), edge=edge(tmp_path, shared)) as gateway:
        asked = [(BOB, "other"), (ALICE, "other"), (ALICE, "alias"), (ALICE, "fake"), (ALICE, "fake")]
        answers = [await ask(gateway, key, model=model) for key, model in asked]
        assert [answer.status_code for answer in answers] == [200, 429, 200, 200, 429]
        assert "The model 'other' is limited to 1 requests per minute" in answers[1].text
        assert "This gateway is limited to 3 requests per minute" in answers[4].text


async def test_day_of_tokens_is_refused_by_name(tmp_path: Path) -> None:
    async with serving(FakeBackend(), edge=edge(tmp_path, tokens_per_day=400)) as gateway:
        assert (await ask(gateway, max_tokens=300)).status_code == 200
        refused = await ask(gateway, max_tokens=390)
        assert (refused.status_code, "400 tokens per day" in refused.text) == (429, True)
        assert refused.headers["x-ratelimit-limit-tokens"] == "400"
        assert await gateway.metric("upshift_rate_limited_total", limit="tokens_per_day") == 1


@pytest.mark.parametrize("error", [BackendUnavailable("x"), BackendLoading("x"), BackendOverloaded("x")], ids=repr)
async def test_waiting_for_a_model_burns_no_limit(tmp_path: Path, error: BackendError) -> None:
    backend = FakeBackend(before=[error])
    async with serving(backend, edge=edge(tmp_path, requests_per_minute=1, tokens_per_minute=1000)) as gateway:
        for _ in range(3):
            assert (await ask(gateway, max_tokens=900)).status_code == 503
        backend.before = ()
        assert (await ask(gateway, max_tokens=900)).status_code == 200
        assert (await ask(gateway, max_tokens=900)).status_code == 429


async def test_a_failure_has_the_headers_too(tmp_path: Path) -> None:
    backend = FakeBackend(before=[BackendProtocolError("It broke.")])
    async with serving(backend, edge=edge(tmp_path, requests_per_minute=5, tokens_per_minute=10_000)) as gateway:
        answer = await ask(gateway, max_tokens=1000)
        assert answer.status_code == 502
        assert remaining(answer, "requests") == 4
        assert remaining(answer, "tokens") == 10_000 - 1000 - -(-len(answer.request.content) // 4)


async def test_a_long_body_is_not_read_for_a_key_that_is_at_its_limits(tmp_path: Path) -> None:
    async with serving(FakeBackend(), edge=edge(tmp_path, requests_per_minute=1)) as gateway:
        assert (await ask(gateway)).status_code == 200
        async with gateway.connection() as (reader, writer):
            writer.write(request(b'{"model":', f"x-api-key: {ALICE}", "content-length: 9000000"))
            assert (await reader.readline()).startswith(b"HTTP/1.1 429 ")
            assert b"x-ratelimit-remaining-requests: 0\r\n" in await reader.readuntil(b"\r\n\r\n")
