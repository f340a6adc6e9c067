"""Token limits that users of other gateways found broken, each as a test that would have found it here."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.base import Usage
from backends.errors import BackendLoading
from gateway.keys import hash_of, new_key
from tests.fakes import FakeBackend, chat_body, chat_events
from tests.gateway.running import CHAT, Gateway, body, request, serving

KEY = new_key()


def edge(folder: Path, **limits: Any) -> dict[str, Any]:
    file = folder / "keys.yaml"
    file.write_text(json.dumps({"keys": [{"name": "a", "hash": hash_of(KEY), "limits": limits}]}))
    return {"auth": {"keys_file": str(file)}}


async def ask(gateway: Gateway, **fields: Any) -> httpx.Response:
    return await gateway.client.post(CHAT, json=body(**fields), headers={"x-api-key": KEY})


def tokens_left(answer: httpx.Response) -> int:
    return int(answer.headers["x-ratelimit-remaining-tokens"])


async def test_concurrent_requests_cannot_spend_more_than_the_limit(tmp_path: Path) -> None:
    """litellm#18730: five at once spent 663 tokens of a key that had 100 a minute."""
    go = asyncio.Event()
    backend = FakeBackend(script=[chat_body(usage=Usage(20, 60))], before=[go])
    async with serving(backend, edge=edge(tmp_path, tokens_per_minute=100)) as gateway:
        asking = [asyncio.create_task(ask(gateway, max_tokens=60)) for _ in range(5)]
        await backend.called.wait()
        refused, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        assert {task.result().status_code for task in refused} == {429}
        go.set()
        statuses = sorted([(await task).status_code for task in asking])
        assert statuses == [200, 429, 429, 429, 429]


async def test_small_limit_does_not_refuse_the_first_request(tmp_path: Path) -> None:
    """litellm#29193: without max_tokens the first call of a key with a small limit got 429."""
    backend = FakeBackend(script=[chat_body(usage=Usage(5, 5))])
    async with serving(backend, edge=edge(tmp_path, tokens_per_minute=50)) as gateway:
        assert (await ask(gateway)).status_code == 200
        # And what it did not take is there for the next.
        assert tokens_left(await ask(gateway, max_tokens=1)) >= 10


@pytest.mark.parametrize("larger", ["max_completion_tokens", "max_output_tokens"])
async def test_larger_of_two_caps_is_reserved(tmp_path: Path, larger: str) -> None:
    """litellm#37001: max_tokens=1 beside max_completion_tokens=10000 reserved 1; #34728: max_output_tokens nothing."""
    async with serving(FakeBackend(), edge=edge(tmp_path, tokens_per_minute=20_000)) as gateway:
        answer = await ask(gateway, max_tokens=1, **{larger: 10_000})
        assert tokens_left(answer) == 20_000 - 10_000 - -(-len(answer.request.content) // 4)


async def test_answer_is_settled_to_what_it_took_with_and_without_usage(tmp_path: Path) -> None:
    """litellm#34728: reserved 1 and settled 0."""
    backend = FakeBackend(script=[chat_body(usage=Usage(700, 300))])
    async with serving(backend, edge=edge(tmp_path, tokens_per_minute=10_000)) as gateway:
        await ask(gateway, max_tokens=10)
        await gateway.settled()
        assert 8900 <= tokens_left(await ask(gateway, max_tokens=1)) <= 9050


async def test_tokens_made_before_an_abort_stay_charged(tmp_path: Path) -> None:
    made = [event for number in range(50) for event in chat_events(f"w{number}")[:1]]
    backend = FakeBackend(script=[*made, asyncio.Event()])
    content = json.dumps(body(stream=True, max_tokens=900)).encode()
    async with serving(backend, edge=edge(tmp_path, tokens_per_minute=10_000)) as gateway:
        async with gateway.connection() as (reader, writer):
            writer.write(request(content, f"x-api-key: {KEY}", f"content-length: {len(content)}"))
            await reader.readuntil(b"w49")
        await gateway.settled()
        backend.script = None
        after = await ask(gateway, max_tokens=0)
        taken = 50 + -(-len(content) // 4)
        spent = 10_000 - tokens_left(after) - -(-len(after.request.content) // 4)
        # Ten tokens come back in 60 ms, on a busy machine some more.
        assert max(taken - 60, 0) <= spent <= taken


async def test_an_answer_in_one_piece_that_nobody_waits_for_is_charged_as_estimated(tmp_path: Path) -> None:
    backend = FakeBackend(before=[asyncio.Event()])
    content = json.dumps(body(max_tokens=900)).encode()
    async with serving(backend, edge=edge(tmp_path, tokens_per_minute=10_000)) as gateway:
        async with gateway.connection() as (_, writer):
            writer.write(request(content, f"x-api-key: {KEY}", f"content-length: {len(content)}"))
            await backend.called.wait()
        await gateway.settled()
        backend.before = ()
        after = await ask(gateway, max_tokens=0)
        spent = 10_000 - tokens_left(after) - -(-len(after.request.content) // 4)
        assert spent == 900 + -(-len(content) // 4)


async def test_waiting_for_a_load_burns_nothing(tmp_path: Path) -> None:
    """freellmapi#591: requests that only waited for a model used the key up."""
    backend = FakeBackend(before=[BackendLoading("loading", progress=0.5)])
    limits = {"requests_per_minute": 1, "tokens_per_day": 1000, "concurrent": 1}
    async with serving(backend, edge=edge(tmp_path, **limits)) as gateway:
        for _ in range(5):
            assert (await ask(gateway, max_tokens=900)).json()["error"]["code"] == "model_loading"
        backend.before = ()
        assert (await ask(gateway, max_tokens=900)).status_code == 200
