"""Whoever makes a request wait too long, or leaves it, is let go; and nothing is left behind."""

from __future__ import annotations

import asyncio
import json

import pytest

from backends.base import Usage
from tests.fakes import FakeBackend, Step, chat_events
from tests.gateway.running import body, request, serving

EVENTS = chat_events("Hel", "lo", usage=Usage(5, 2, 1))


async def test_engine_that_never_answers_is_given_up() -> None:
    backend = FakeBackend(before=[asyncio.Event()])
    async with serving(backend, response_timeout_seconds=0.05) as gateway:
        response = await gateway.chat()
        assert (response.status_code, response.headers["x-should-retry"]) == (504, "false")
        assert backend.cancelled == 1
        assert gateway.upstream.in_flight == 0


async def test_an_engine_is_not_blamed_for_the_time_before_it_was_asked() -> None:
    hold = asyncio.Event()
    backend = FakeBackend(before=[hold])
    async with serving(backend, response_timeout_seconds=0.3) as gateway:
        gateway.upstream.limit = 1
        first = asyncio.create_task(gateway.chat())
        await backend.called.wait()
        # So that it still waits for a place when the first one is given up.
        await asyncio.wait({first}, timeout=0.15)
        second = asyncio.create_task(gateway.chat())
        assert (await first).status_code == 504
        asyncio.get_running_loop().call_later(0.1, hold.set)
        assert (await second).status_code == 200
        assert (len(backend.requests), gateway.upstream.breaker.failures) == (2, 0)


@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_engine_that_stops_in_the_middle_is_given_up(stream: bool) -> None:
    first = EVENTS[0] if stream else b"{"
    backend = FakeBackend(script=[first, asyncio.Event()])
    async with serving(backend, idle_timeout_seconds=0.05) as gateway:
        response = await gateway.chat(stream=stream)
        assert "backend_timeout" in response.text
        assert (backend.open, backend.aborted, gateway.upstream.in_flight) == (0, 1, 0)


async def test_slow_but_steady_stream_is_not_given_up() -> None:
    ticks = [asyncio.Event() for _ in range(6)]
    script: list[Step] = [step for tick in ticks for step in (EVENTS[0], tick)]
    async with serving(FakeBackend(script=[*script, EVENTS[-1]]), idle_timeout_seconds=0.4) as gateway:
        loop = asyncio.get_running_loop()
        for number, tick in enumerate(ticks, 1):
            loop.call_later(0.1 * number, tick.set)
        response = await gateway.chat(stream=True)
        assert response.text.count("Hel") == 6
        assert response.text.endswith("[DONE]\n\n")


async def test_client_that_does_not_read_is_cut_and_frees_the_engine() -> None:
    backend = FakeBackend(script=[b"data: " + b"x" * 65536 + b"\n\n"] * 400)
    async with serving(backend, idle_timeout_seconds=0.1) as gateway:
        async with gateway.connection() as (_, writer):
            writer.write(request(json.dumps(body(stream=True)).encode()))
            await backend.called.wait()
            await backend.closed.wait()
        await gateway.settled()
        [line] = gateway.lines()
        assert (line["status"], line["bytes_out"] < 20_000_000) == (499, True)
        assert gateway.upstream.in_flight == 0


# (streamed, what the engine sends before it hangs; None: not even headers, stage)
PHASES: dict[str, tuple[bool, list[bytes] | None, str]] = {
    "before the first byte, json": (False, None, "waiting"),
    "before the first byte, stream": (True, None, "waiting"),
    "inside a json body": (False, [b"{"], "waiting"),
    "after headers of a stream": (True, [], "streaming"),
    "inside a stream": (True, EVENTS[:1], "streaming"),
}


def hanging(sent: list[bytes] | None) -> FakeBackend:
    never = asyncio.Event()
    return FakeBackend(before=[never]) if sent is None else FakeBackend(script=[*sent, never])


@pytest.mark.parametrize("name", PHASES)
@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
async def test_client_that_leaves_frees_everything(name: str, reset: bool) -> None:
    stream, sent, stage = PHASES[name]
    backend = hanging(sent)
    async with serving(backend) as gateway:
        async with gateway.connection() as (_, writer):
            writer.write(request(json.dumps(body(stream=stream)).encode()))
            await backend.called.wait()
            await asyncio.sleep(0)  # lets the relay reach the answer
            if reset:
                writer.transport.abort()
        await gateway.settled()
        assert gateway.upstream.in_flight == backend.open == 0
        assert backend.cancelled + backend.aborted == 1
        [line] = gateway.lines()
        assert (line["status"], line["code"]) == (499, "client_disconnected")
        assert await gateway.metric("upshift_cancelled_total", stage=stage) == 1
        labels = {"model": "fake", "operation": "chat"}
        assert (
            sum(
                [
                    await gateway.metric("upshift_requests_total", backend=b, code="499", **labels) or 0
                    for b in ("", "fake")
                ]
            )
            == 1
        )
        for code in ("500", "502", "503", "504"):
            assert await gateway.metric("upshift_requests_total", backend="fake", code=code, **labels) is None


async def test_client_that_pipelined_more_and_leaves_frees_everything() -> None:
    backend = FakeBackend(before=[asyncio.Event()])
    async with serving(backend) as gateway:
        async with gateway.connection() as (_, writer):
            writer.write(request() * 3)
            await backend.called.wait()
        await gateway.settled()
        assert (len(backend.requests), backend.cancelled, gateway.upstream.in_flight) == (1, 1, 0)


async def test_client_that_leaves_while_sending_is_counted_there() -> None:
    async with serving(FakeBackend()) as gateway:
        async with gateway.connection() as (reader, writer):
            writer.write(request(b"", "content-length: 100", "expect: 100-continue"))
            await reader.readuntil(b"\r\n\r\n")
        await gateway.settled()
        assert await gateway.metric("upshift_cancelled_total", stage="body") == 1
        assert gateway.lines()[0]["status"] == 499


async def test_many_clients_leaving_at_once_leave_nothing() -> None:
    backend = FakeBackend(script=[EVENTS[0], asyncio.Event()])
    async with serving(backend) as gateway:

        async def leave() -> None:
            async with gateway.connection() as (reader, writer):
                writer.write(request(json.dumps(body(stream=True)).encode()))
                await reader.readuntil(b"data: ")

        await asyncio.gather(*(leave() for _ in range(50)))
        await gateway.settled()
        assert (gateway.upstream.in_flight, backend.open, backend.aborted) == (0, 0, 50)
