"""What clients see of waiting for a place: comments, a place in the end, or a refusal in whatever way is left."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tests.fakes import FakeBackend, chat_events
from tests.gateway.running import CHAT, Gateway, body, serving


def one_at_a_time(**queue: Any) -> dict[str, Any]:
    gguf = {"source": "demo", "max_in_flight": 1}
    return {"models": [{"name": "fake", "gguf": gguf}], "routing": {"queue": {"ping_seconds": 0.01, **queue}}}


async def waiting(gateway: Gateway, number: int) -> None:
    async with asyncio.timeout(30):
        while await gateway.metric("upshift_queue_depth", model="fake") != number:  # noqa: ASYNC110 - a scrape is the only view
            await asyncio.sleep(0.01)


async def test_a_stream_that_waits_is_told_its_position_and_then_answered() -> None:
    hold = asyncio.Event()
    backend = FakeBackend(script=[hold, *chat_events("Hi")])
    async with serving(backend, edge=one_at_a_time()) as gateway:
        first = asyncio.create_task(gateway.chat(stream=True))
        await backend.called.wait()
        async with gateway.client.stream("POST", CHAT, json=body(stream=True)) as response:
            assert response.status_code == 200
            assert response.headers["content-type"] == "text/event-stream"
            lines = response.aiter_lines()
            assert await anext(lines) == ": ping, position 1 in the queue"
            hold.set()
            rest = [line async for line in lines if line and not line.startswith(":")]
        assert rest[-1] == "data: [DONE]"
        assert len(rest) == len(chat_events("Hi"))
        assert (await first).headers["x-upshift-reason"] == "only"
        await gateway.settled()
        assert gateway.upstream.in_flight == 0
        labels = {"model": "fake", "backend": "fake", "reason": "only"}
        assert await gateway.metric("upshift_routing_decisions_total", **labels) == 2
        assert await gateway.metric("upshift_queue_wait_seconds_count", model="fake") == 2
        assert await gateway.metric("upshift_queue_depth", model="fake") == 0
        assert [line["reason"] for line in gateway.lines()] == ["only", "only"]


async def test_a_wait_that_is_over_ends_a_stream_that_has_begun_with_an_error_event() -> None:
    backend = FakeBackend(script=[asyncio.Event()])
    async with serving(backend, edge=one_at_a_time(max_wait_seconds=0.3)) as gateway:
        first = asyncio.create_task(gateway.chat(stream=True))
        await backend.called.wait()
        refused = await gateway.chat(stream=True)
        assert refused.status_code == 200
        last = refused.text.strip().rpartition("\n")[2]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "overloaded"
        assert "[DONE]" not in refused.text
        first.cancel()


async def test_others_are_refused_with_a_status_and_a_time() -> None:
    backend = FakeBackend(script=[asyncio.Event()])
    async with serving(backend, edge=one_at_a_time(max_waiting=0)) as gateway:
        first = asyncio.create_task(gateway.chat())
        await backend.called.wait()
        refused = await gateway.chat()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "overloaded")
        assert int(refused.headers["retry-after"]) >= 1
        assert "engine" not in refused.text
        first.cancel()


async def test_a_client_that_leaves_the_queue_is_a_499_that_reached_nobody() -> None:
    backend = FakeBackend(script=[asyncio.Event()])
    async with serving(backend, edge=one_at_a_time()) as gateway:
        first = asyncio.create_task(gateway.chat())
        await backend.called.wait()
        second = asyncio.create_task(gateway.chat(stream=True))
        await waiting(gateway, 1)
        second.cancel()
        await waiting(gateway, 0)
        assert len(backend.requests) == 1
        assert await gateway.metric("upshift_cancelled_total", stage="waiting") == 1
        first.cancel()
