"""One contract for every real server and every transport; what needs a server that misbehaves is in the other files.

vLLM is not here: its server is uvicorn. nginx is Debian's, fetched once.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from backends.errors import BackendProtocolError, BackendTimeout
from backends.http import HttpClient, HttpResponse, client_tls
from tests.backends.peer import LIMIT_SECONDS, TRANSPORTS, Transport, fetch_rest
from tests.debian import CannotFetch, program

pytestmark = [
    pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"]),
    pytest.mark.usefixtures("nothing_is_left_open"),
]

MIB = 1024 * 1024
KINDS = ["uvicorn", "aiohttp", "nginx"]
Make = Callable[..., HttpClient]


@pytest.fixture(scope="module", params=KINDS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Addresses by transport, and the authority's file, of a server in a process of its own."""
    if request.param == "nginx":
        try:
            program("nginx", "usr/sbin/nginx")
        except CannotFetch as error:
            pytest.skip(str(error))
    folder = tmp_path_factory.mktemp(request.param)
    command = [sys.executable, "-m", "tests.backends.contract_server", request.param, str(folder)]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, (folder / "log").read_text()
    try:
        yield json.loads(line)
    finally:
        process.stdin.close()
        process.wait(10)
        process.stdout.close()


@pytest.fixture(params=TRANSPORTS)
async def make(request: pytest.FixtureRequest, server: dict[str, str]) -> AsyncIterator[Make]:
    """Makes clients of the server over one transport."""
    made: list[HttpClient] = []
    over: Transport = request.param

    def build(**options: Any) -> HttpClient:
        tls = client_tls(server["ca"]) if over == "tls" else None
        made.append(HttpClient(server[over], tls=tls, **options))
        return made[-1]

    yield build
    for client in made:
        await client.aclose()


async def call(client: HttpClient, path: str, body: bytes = b"", *headers: tuple[bytes, bytes]) -> tuple[int, bytes]:
    async with asyncio.timeout(LIMIT_SECONDS):
        response = await client.request("POST", path, headers, body)
        try:
            return response.status, await fetch_rest(response)
        finally:
            response.close()


async def counter(client: HttpClient, name: str) -> int:
    return int(json.loads((await call(client, "/count"))[1])[name])


async def grown(client: HttpClient, name: str, before: int) -> bool:
    return await counter(client, name) > before


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Polls, which is the only view on another process."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def connections(client: HttpClient) -> list[int]:
    return [id(connection) for connection in client._pool._connections]


# -- bodies -----------------------------------------------------------------------------------------------------------


async def test_connection_is_used_again_for_every_kind_of_answer(make: Make) -> None:
    client = make()
    assert await call(client, "/echo", b"hello") == (200, b"hello")
    used = connections(client)
    assert await call(client, "/echo") == (200, b"")
    assert await call(client, "/chunks", b"x" * 5000) == (200, b"x" * 5000)
    assert await call(client, "/chunks") == (200, b"")
    assert await call(client, "/status/204") == (204, b"")
    assert await call(client, "/status/404") == (404, b"")
    assert await call(client, "/echo", b"again") == (200, b"again")
    assert len(used) == 1
    assert connections(client) == used


async def test_304_has_no_body_and_harms_nobody(make: Make) -> None:
    client = make()
    assert await call(client, "/status/304") == (304, b"")
    assert await call(client, "/echo", b"hello") == (200, b"hello")


async def test_get_needs_no_body(make: Make) -> None:
    client = make()
    response = await client.request("GET", "/count")
    assert "offered" in json.loads(await response.read(1000))
    response.close()


async def test_large_bodies_pass_both_ways_at_once(make: Make) -> None:
    client = make(max_connections=4)
    bodies = [os.urandom(3 * MIB) for _ in range(6)]
    for path in ("/echo", "/chunks"):
        assert await asyncio.gather(*(call(client, path, body) for body in bodies)) == [(200, body) for body in bodies]
    assert len(connections(client)) <= 4


async def test_expectation_is_answered_by_an_interim_response(make: Make) -> None:
    client = make()
    for _ in range(2):
        assert await call(client, "/echo", b"hello", (b"expect", b"100-continue")) == (200, b"hello")
    assert len(connections(client)) == 1


# -- answers that come too early --------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [MIB, 8 * MIB], ids=["1-MiB", "8-MiB"])
async def test_upload_that_is_refused_before_its_end_gets_to_know_why(make: Make, size: int) -> None:
    client, told = make(), 0
    for _ in range(30):
        try:
            status, body = await call(client, "/refuse", b"x" * size)
        except BackendProtocolError as error:
            # uvicorn closes with bytes unread, which resets the connection; the kernel may then lose what it had sent
            # (a bare socket sees the same, over TCP in 4 % of the cases or, in another hour, in every second).
            assert "reset by peer" in str(error)  # noqa: PT017
            continue
        assert status == 413
        assert b"too large" in body.lower()
        told += 1
    assert told > 2
    assert await call(client, "/echo", b"hello") == (200, b"hello")


async def test_answer_before_the_end_of_the_request_is_an_answer(make: Make) -> None:
    client = make()
    for _ in range(5):
        assert await call(client, "/early", b"x" * (8 * MIB)) == (200, b"early")
        assert await call(client, "/echo", b"hello") == (200, b"hello")


# -- ends -------------------------------------------------------------------------------------------------------------


async def test_connection_the_server_ends_is_not_used_again(make: Make) -> None:
    client = make()
    for _ in range(3):
        response = await client.request("POST", "/last", (), b"hello")
        assert await response.read(10) == b"hello"
        response.close()
        # nginx keeps its own connections, whatever the server behind it says.
        assert bool(client._pool._idle) == ((b"connection", b"close") not in response.headers)


async def test_connection_the_server_closes_while_idle_is_replaced(make: Make) -> None:
    client = make(pool_idle_seconds=60)
    assert await call(client, "/echo", b"1") == (200, b"1")
    used = connections(client)

    async def closed() -> bool:
        return not connections(client)

    await until(closed)
    assert await call(client, "/echo", b"2") == (200, b"2")
    assert len(used) == 1


async def test_body_that_breaks_off_is_a_protocol_error(make: Make) -> None:
    client = make()
    with pytest.raises(BackendProtocolError):
        await call(client, "/broken")
    assert await call(client, "/echo", b"hello") == (200, b"hello")


@pytest.mark.parametrize("path", ["/silent", "/stall", f"/offer/{1 << 30}"])
async def test_leaving_tells_the_server(make: Make, path: str) -> None:
    client, other = make(), make()
    left, silent = await counter(other, "left"), await counter(other, "silent")
    task = asyncio.create_task(client.request("POST", path))
    if path == "/silent":
        await until(lambda: grown(other, "silent", silent))
        task.cancel()
    else:
        response = await task
        await anext(response.chunks)
        response.close()
    await until(lambda: grown(other, "left", left))
    assert connections(client) == []
    with pytest.raises((asyncio.CancelledError, BackendProtocolError)):
        await anext((await task).chunks)


async def test_timeouts_for_the_head_and_within_the_body(make: Make) -> None:
    client = make(response_timeout_seconds=0.05)
    with pytest.raises(BackendTimeout, match=r"No response within 0\.05 s"):
        await call(client, "/silent")
    client = make(idle_timeout_seconds=0.05)
    with pytest.raises(BackendTimeout, match=r"No data within 0\.05 s"):
        await call(client, "/stall")


# -- space ------------------------------------------------------------------------------------------------------------


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def stuck(client: HttpClient) -> int:
    """What the server has got rid of once it gets rid of no more."""
    seen: list[int] = []

    async def no_more() -> bool:
        seen.append(await counter(client, "offered"))
        return len(set(seen[-20:])) == 1 and len(seen) >= 20

    await until(no_more)
    return seen[-1]


async def test_slow_reader_stops_a_server_that_offers_a_gigabyte(make: Make) -> None:
    client, other = make(), make()
    start = await counter(other, "offered")
    before = resident_bytes()
    response: HttpResponse = await client.request("POST", f"/offer/{1 << 30}")
    offered = await stuck(other)
    assert offered - start < 128 * MIB  # what kernels and proxies hold: here, a thousandth of a GB
    taken, most = 0, resident_bytes()
    async for chunk in response.chunks:
        taken += len(chunk)
        await asyncio.sleep(0)
        most = max(most, resident_bytes())
        if taken > 16 * MIB:
            break
    assert most - before < 8 * MIB
    response.close()


async def test_upload_that_nobody_reads_takes_no_more_memory_than_itself(make: Make) -> None:
    client, other = make(), make()
    body = b"x" * (64 * MIB)
    silent, before = await counter(other, "silent"), resident_bytes()
    task = asyncio.create_task(client.request("POST", "/silent", (), body))
    await until(lambda: grown(other, "silent", silent))
    await asyncio.sleep(0)
    assert resident_bytes() - before < 8 * MIB
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# -- cancelling -------------------------------------------------------------------------------------------------------


async def test_cancelling_at_any_point_leaves_nothing_behind(make: Make) -> None:
    client = make(max_connections=2, pool_idle_seconds=0.01)
    body = os.urandom(300_000)
    ends = set()
    for steps in range(0, 160, 2):
        task = asyncio.create_task(call(client, "/chunks", body))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        (end,) = await asyncio.gather(task, return_exceptions=True)
        ends.add(type(end))
        assert isinstance(end, asyncio.CancelledError) or end == (200, body)
    assert asyncio.CancelledError in ends
    # Both places are free, and no connection is out of step.
    assert await asyncio.gather(*(call(client, "/echo", b"%d" % n) for n in range(6))) == [
        (200, b"%d" % n) for n in range(6)
    ]
    await client.aclose()
    assert connections(client) == []
    assert client._pool._free_places == 2
