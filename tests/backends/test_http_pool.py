"""Which connections the client keeps, and that closing anything ends what the server does for it."""

from __future__ import annotations

import asyncio
import time

import pytest

from backends.errors import BackendProtocolError, BackendUnavailable
from backends.http import HttpClient
from tests.backends.peer import CHUNKED, Talk, answer, fetch, fetch_rest, says, serve

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

MIB = 1024 * 1024


async def test_concurrent_requests_have_a_connection_each_and_later_ones_reuse_them() -> None:
    async with serve(says(answer(b"hello"))) as peer:
        client = HttpClient(peer.address)
        for _ in range(5):
            assert await asyncio.gather(*(fetch(client) for _ in range(4))) == [b"hello"] * 4
        assert peer.connections == 4
        await client.aclose()


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(answer(b"hello", b"connection: close"), id="server-says-close"),
        pytest.param(answer(b"hello").replace(b"/1.1", b"/1.0"), id="http-1.0"),
        pytest.param(answer(b"hello") + b"more", id="bytes-after-the-end"),
        pytest.param(answer(b"hello") + answer(b"hello"), id="a-second-answer"),
    ],
)
async def test_connection_of_doubtful_state_is_not_reused(message: bytes) -> None:
    async with serve(says(message)) as peer:
        client = HttpClient(peer.address)
        assert [await fetch(client), await fetch(client)] == [b"hello", b"hello"]
        assert peer.connections == 2
        await client.aclose()


async def test_unasked_bytes_on_an_idle_connection_close_it() -> None:
    closed = asyncio.Event()

    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.send(answer(b"hello"))
        if talk.number == 1:
            await asked.wait()
            await talk.send(answer(b"poison"))
        await talk.gone()
        closed.set()

    asked = asyncio.Event()
    async with serve(script) as peer:
        client = HttpClient(peer.address)
        assert await fetch(client) == b"hello"
        asked.set()
        await closed.wait()
        assert await fetch(client) == b"hello"
        assert peer.connections == 2
        await client.aclose()


async def test_answer_before_the_request_was_sent_ends_the_connection() -> None:
    async def script(talk: Talk) -> None:
        await talk.send(answer(b"too large", status=413))
        await talk.gone()

    async with serve(script) as peer:
        client = HttpClient(peer.address)
        for _ in range(2):
            assert await fetch(client, b"x" * (8 * MIB)) == b"too large"
        assert peer.connections == 2
        await client.aclose()


async def test_connection_is_not_used_beyond_its_time_even_if_the_loop_was_too_busy_to_close_it() -> None:
    async with serve(says(answer(b"hello"))) as peer:
        client = HttpClient(peer.address, pool_idle_seconds=0.02)
        assert await fetch(client) == b"hello"
        busy_until = time.monotonic() + 0.03
        while time.monotonic() < busy_until:
            pass
        assert await fetch(client) == b"hello"
        assert peer.connections == 2
        await client.aclose()


async def test_unused_connection_is_closed_before_the_server_would() -> None:
    closed = asyncio.Event()

    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.send(answer(b"hello"))
        await talk.gone()
        closed.set()

    async with serve(script) as peer:
        client = HttpClient(peer.address, pool_idle_seconds=0.02)
        assert await fetch(client) == b"hello"
        await closed.wait()
        await client.aclose()


# -- closing ----------------------------------------------------------------------------------------------------------


async def _endless(talk: Talk) -> None:
    await talk.request()
    await talk.send(CHUNKED)
    while True:
        await talk.send(b"3\r\nabc\r\n")


async def test_closing_before_the_end_stops_the_server() -> None:
    stopped = asyncio.Event()

    async def script(talk: Talk) -> None:
        try:
            await _endless(talk)
        finally:
            stopped.set()

    async with serve(script) as peer:
        client = HttpClient(peer.address)
        response = await client.request("GET", "/")
        assert await anext(aiter(response.chunks))
        response.close()
        response.close()
        await stopped.wait()
        with pytest.raises(BackendProtocolError, match="closed before its end"):
            await fetch_rest(response)
        await client.aclose()


@pytest.mark.parametrize("answered", [False, True], ids=["before-headers", "in-the-body"])
async def test_cancelling_closes_the_connection(answered: bool) -> None:
    waiting, closed = asyncio.Event(), asyncio.Event()

    async def script(talk: Talk) -> None:
        await talk.request()
        if answered:
            await talk.send(CHUNKED)
        waiting.set()
        await talk.gone()
        closed.set()

    async def call() -> None:
        response = await client.request("GET", "/")
        try:
            await fetch_rest(response)
        finally:
            response.close()

    async with serve(script) as peer:
        client = HttpClient(peer.address)
        task = asyncio.create_task(call())
        await waiting.wait()
        task.cancel()
        await closed.wait()
        with pytest.raises(asyncio.CancelledError):
            await task
        await client.aclose()


async def test_closed_client_ends_everything_and_refuses_more() -> None:
    closed = asyncio.Event()

    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.send(CHUNKED)
        await talk.gone()
        closed.set()

    async with serve(script) as peer:
        client = HttpClient(peer.address)
        response = await client.request("GET", "/")
        reader = asyncio.create_task(fetch_rest(response))
        await client.aclose()
        await closed.wait()
        with pytest.raises(BackendProtocolError, match="closed by its owner"):
            await reader
        with pytest.raises(BackendUnavailable, match="closed"):
            await client.request("GET", "/")
        response.close()
        await client.aclose()
