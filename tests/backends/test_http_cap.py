"""At most so many connections: who waits, for how long, and that nothing is left of those who gave up."""

from __future__ import annotations

import asyncio

import pytest

from backends.errors import BackendUnavailable
from backends.http import HttpClient
from tests.backends.peer import CHUNKED, TRANSPORTS, Talk, Transport, answer, fetch, says, serve

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


async def echo(talk: Talk) -> None:
    while True:
        _, body = await talk.request()
        await talk.send(answer(body))


async def asked(client: HttpClient, count: int) -> list[asyncio.Task[bytes]]:
    """So many callers, who have all come to wait for a connection, in this order."""
    tasks = [asyncio.create_task(fetch(client, b"%d" % number)) for number in range(count)]
    for _ in range(3):
        await asyncio.sleep(0)
    return tasks


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_more_callers_than_connections_share_them(over: Transport, nothing_is_left_open: None) -> None:
    async with serve(echo, over) as peer:
        client = peer.client(max_connections=3)
        assert await asyncio.gather(*(fetch(client, b"%d" % n) for n in range(50))) == [b"%d" % n for n in range(50)]
        assert peer.connections == 3
        await client.aclose()


async def test_callers_are_served_in_the_order_they_came() -> None:
    order: list[bytes] = []

    async def script(talk: Talk) -> None:
        while True:
            _, body = await talk.request()
            order.append(body)
            await talk.send(answer(b""))

    async with serve(script) as peer:
        client = peer.client(max_connections=1)
        first = await client.request("GET", "/")
        tasks = await asked(client, 5)
        first.close()
        await fetch(client, b"late")
        await asyncio.gather(*tasks)
        assert order == [b"", b"0", b"1", b"2", b"3", b"4", b"late"]
        assert peer.connections == 1
        await client.aclose()


async def test_waiting_ends_with_the_connect_timeout_and_names_the_cap() -> None:
    async with serve(echo) as peer:
        client = peer.client(max_connections=2, connect_timeout_seconds=0.02)
        responses = [await client.request("GET", "/") for _ in range(2)]
        for _ in range(2):
            with pytest.raises(BackendUnavailable, match=r"within 0\.02 s: all 2 allowed are in use"):
                await fetch(client)
        for response in responses:
            response.close()
        assert await asyncio.gather(*(fetch(client, b"x") for _ in range(4))) == [b"x"] * 4
        assert peer.connections == 2
        await client.aclose()


@pytest.mark.parametrize("ended", ["released", "aborted", "closed-by-server"])
async def test_place_of_an_ended_connection_goes_to_the_next_who_still_waits(ended: str) -> None:
    async def script(talk: Talk) -> None:
        if talk.number > 1 or ended == "released":
            await echo(talk)
        await talk.request()
        await talk.send(CHUNKED)
        if ended == "aborted":
            await talk.gone()

    async with serve(script) as peer:
        client = peer.client(max_connections=1)
        first = await client.request("GET", "/")
        waiting = await asked(client, 3)
        waiting[0].cancel()
        if ended != "closed-by-server":
            first.close()
        assert [await task for task in waiting[1:]] == [b"1", b"2"]
        assert waiting[0].cancelled()
        assert peer.connections == (1 if ended == "released" else 2)
        first.close()
        await client.aclose()


@pytest.mark.parametrize("rounds", range(4))
@pytest.mark.parametrize("gets", ["a-connection", "a-place"])
async def test_what_crosses_a_cancelling_goes_to_the_next(gets: str, rounds: int) -> None:
    async def script(talk: Talk) -> None:
        if talk.number > 1 or gets == "a-connection":
            await echo(talk)
        await talk.request()
        await talk.send(CHUNKED)
        await talk.gone()

    async with serve(script) as peer:
        client = peer.client(max_connections=1)
        first = await client.request("GET", "/")
        waiting = await asked(client, 2)
        first.close()  # hands the connection on at once, or its place once it is gone
        for _ in range(rounds):
            await asyncio.sleep(0)
        waiting[0].cancel()
        assert await waiting[1] == b"1"
        assert await fetch(client, b"x") == b"x"
        await client.aclose()


async def test_failed_connecting_gives_its_place_back() -> None:
    client = HttpClient("unix:/nonexistent", max_connections=1)
    for outcome in await asyncio.gather(*(fetch(client) for _ in range(5)), return_exceptions=True):
        assert isinstance(outcome, BackendUnavailable)
        assert "No such file" in str(outcome)
    await client.aclose()


async def test_cancelled_connecting_gives_its_place_back() -> None:
    async with serve(echo, "tcp") as peer:
        client = peer.client(max_connections=1)
        for _ in range(3):
            task = asyncio.create_task(fetch(client, b"x"))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await fetch(client, b"x") == b"x"
        await client.aclose()


async def test_stale_connection_is_replaced_within_the_cap() -> None:
    open_now: set[int] = set()

    async def script(talk: Talk) -> None:
        open_now.add(talk.number)
        assert len(open_now) == 1
        _, body = await talk.request()
        await talk.send(answer(body))
        if talk.number == 1:
            await talk.request()
            open_now.discard(talk.number)
            return  # without a word
        try:
            await echo(talk)
        finally:
            open_now.discard(talk.number)

    async with serve(script) as peer:
        client = peer.client(max_connections=1)
        assert await fetch(client, b"first") == b"first"
        assert await asyncio.gather(*(fetch(client, body) for body in (b"a", b"b", b"c"))) == [b"a", b"b", b"c"]
        assert 2 <= peer.connections <= 3
        await client.aclose()


async def test_fresh_connection_costs_an_idle_one_where_there_is_no_other_place() -> None:
    async with serve(echo) as peer:
        client = peer.client(max_connections=1)
        assert await fetch(client, b"x") == b"x"
        connection = await client._pool.connect(fresh=True)
        response = await connection.exchange(b"GET / HTTP/1.1\r\n\r\n", b"")
        assert (response.status, peer.connections) == (200, 2)
        await client.aclose()


async def test_closing_the_client_sends_those_away_who_wait() -> None:
    async with serve(says(CHUNKED)) as peer:
        client = peer.client(max_connections=1)
        first = await client.request("GET", "/")
        waiting = await asked(client, 3)
        await client.aclose()
        for outcome in await asyncio.gather(*waiting, return_exceptions=True):
            assert isinstance(outcome, BackendUnavailable)
            assert "closed" in str(outcome)
        first.close()


async def test_cap_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one connection"):
        HttpClient("unix:/x", max_connections=0)
