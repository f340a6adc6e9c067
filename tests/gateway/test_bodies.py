"""However many large bodies come at once, what they take together stays within what was set."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from gateway.auth import ANONYMOUS, Principal
from gateway.bodies import Bodies
from gateway.call import Call
from gateway.door import Door
from gateway.errors import SignerUnknown
from gateway.keys import hash_of, new_key
from gateway.listener import ClientConnection
from tests.fakes import FakeBackend, chat_events
from tests.gateway.running import Gateway, body, request, serving

LARGE = json.dumps(body(text="a" * 600_000)).encode()


def held(gateway: Gateway) -> int:
    """Of the connections' Bodies, which they share."""
    return max(
        (each.bodies.held for each in gateway.state.connections if isinstance(each, ClientConnection)), default=0
    )


async def until_held(gateway: Gateway, least: int) -> None:
    async with asyncio.timeout(10):
        while held(gateway) < least:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0)


@pytest.mark.parametrize("sent_whole", [True, False], ids=["whole", "begun"])
async def test_one_more_large_body_than_there_is_room_for_is_refused(
    sent_whole: bool, caplog: pytest.LogCaptureFixture
) -> None:
    go = asyncio.Event()
    backend = FakeBackend(before=[go])
    async with serving(backend, max_bodies_bytes=1_000_000) as gateway, gateway.connection() as (first, writer):
        writer.write(request(LARGE) if sent_whole else request(LARGE)[:-1])
        await until_held(gateway, 600_000)
        refused = await gateway.client.post(
            "/v1/chat/completions", content=LARGE, headers={"content-type": "application/json"}
        )
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert refused.headers["retry-after"] == "1"
        assert "failed" not in caplog.text, "it would fill the log"
        # A small one is none of those.
        small = asyncio.create_task(gateway.chat())
        if not sent_whole:
            writer.write(LARGE[-1:])
        go.set()
        assert (await small).status_code == 200
        assert (await first.readline()).startswith(b"HTTP/1.1 200 ")
        assert held(gateway) == 0
        assert (
            await gateway.client.post(
                "/v1/chat/completions", content=LARGE, headers={"content-type": "application/json"}
            )
        ).status_code == 200


async def test_one_body_alone_may_be_as_large_as_any() -> None:
    async with serving(FakeBackend(), max_bodies_bytes=100_000) as gateway:
        assert (await gateway.chat(text="a" * 4_000_000)).status_code == 200


async def test_one_key_leaves_room_for_the_others(tmp_path: Path) -> None:
    keys = {name: new_key() for name in ("alice", "bob")}
    file = tmp_path / "keys.yaml"
    file.write_text(json.dumps({"keys": [{"name": name, "hash": hash_of(key)} for name, key in keys.items()]}))
    file.chmod(0o600)
    go = asyncio.Event()
    backend = FakeBackend(before=[go])
    async with serving(backend, edge={"auth": {"keys_file": str(file)}}, max_bodies_bytes=2_000_000) as gateway:

        async def ask(name: str) -> int:
            headers = {"content-type": "application/json", "authorization": f"Bearer {keys[name]}"}
            return (await gateway.client.post("/v1/chat/completions", content=LARGE, headers=headers)).status_code

        waiting = [asyncio.create_task(ask("alice"))]
        await until_held(gateway, 600_000)
        assert await ask("alice") == 503, "it would have more than half"
        waiting.append(asyncio.create_task(ask("bob")))
        await until_held(gateway, 1_200_000)
        go.set()
        assert await asyncio.gather(*waiting) == [200, 200]
        await gateway.settled()
        assert held(gateway) == 0
        assert await ask("alice") == 200


def test_what_was_let_go_of_leaves_nothing_behind() -> None:
    bodies = Bodies(100)
    for key in (ANONYMOUS, *(bytes([n]) * 32 for n in range(50))):
        bodies.count(key, 70)
        assert bodies.has_room(key, 70), "one that is alone may be as large as any"
        bodies.count(key, 10)
        assert bodies.has_room(key, 10) == (key == ANONYMOUS)
        bodies.count(b"another", 10)
        assert bodies.has_room(b"another", 10)
        bodies.count(b"another", 20)
        assert not bodies.has_room(b"another", 30), "together it is too much"
        bodies.count(b"another", -30)
        bodies.count(key, -80)
        assert (bodies.held, bodies._by_key) == (0, {})


@pytest.mark.parametrize("ends", ["client leaves", "too large", "not json"])
async def test_nothing_is_held_for_whoever_is_gone(ends: str) -> None:
    backend = FakeBackend(before=[asyncio.Event()])
    async with serving(backend, max_body_bytes=2_000_000) as gateway, gateway.connection() as (watching, watcher):
        watcher.write(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await watching.readuntil(b"}")
        async with gateway.connection() as (reader, writer):
            if ends == "client leaves":
                writer.write(request(LARGE)[:-1])
                await until_held(gateway, 600_000)
            else:
                writer.write(request(LARGE * (5 if ends == "too large" else 1) + b"x"))
                assert (await reader.readline()).startswith(b"HTTP/1.1 4")
        await gateway.settled()
        assert held(gateway) == 0


async def test_a_stream_does_not_keep_the_prompt_in_memory() -> None:
    never = asyncio.Event()
    backend = FakeBackend(script=[chat_events("Hel")[0], never])
    tracemalloc.start()
    try:
        async with serving(backend) as gateway, gateway.connection() as (reader, writer):
            writer.write(request(json.dumps(body(stream=True, text="a" * 8_000_000)).encode()))
            await reader.readuntil(b"Hel")
            backend.requests.clear()
            assert tracemalloc.get_traced_memory()[0] < 7_000_000
    finally:
        tracemalloc.stop()


async def test_a_body_is_not_read_while_the_issuer_of_a_token_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, known = asyncio.Event(), asyncio.Event()
    let_in = Door.let_in

    def unknown(*_: Any) -> Principal:
        raise SignerUnknown("Nobody knows.")

    async def ask_issuer(door: Door, call: Call) -> Principal:
        asked.set()
        await known.wait()
        return let_in(door, call)

    monkeypatch.setattr(Door, "let_in", unknown)
    monkeypatch.setattr(Door, "_ask_issuer", ask_issuer)
    async with serving(FakeBackend()) as gateway, gateway.connection() as (reader, writer):
        writer.write(request(json.dumps(body(text="a" * 4_000_000)).encode()))
        await asked.wait()
        [connection] = [each for each in gateway.state.connections if isinstance(each, ClientConnection)]
        for _ in range(10_000):
            await asyncio.sleep(0)
        assert connection.flow.read_paused
        assert isinstance(connection.cycle, Call)
        assert connection.cycle._size < 1_000_000
        known.set()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")


async def test_a_body_that_came_before_anybody_read_it_counts_at_once() -> None:
    async with serving(FakeBackend()) as gateway, gateway.connection() as (_, writer):
        writer.write(request(LARGE)[:100_000])
        await until_held(gateway, 60_000)
