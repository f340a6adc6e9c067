"""Keep-alive, pipelining and what else one connection may carry."""

from __future__ import annotations

import asyncio
import json
import socket

from tests.fakes import FakeBackend
from tests.gateway.running import body, request, serving


async def test_one_connection_serves_many_requests_after_refusals_too() -> None:
    async with serving(FakeBackend()) as gateway, gateway.connection() as (reader, writer):
        for payload, status in ((b"{}", b"400"), (None, b"200"), (b'{"model":"x"}', b"404"), (None, b"200")):
            writer.write(request(payload))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 " + status)
            await _rest(reader, head)


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with serving(FakeBackend()) as gateway, gateway.connection() as (reader, writer):
        writer.write(request() + request(b"{}") + request())
        for status in (b"200", b"400", b"200"):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 " + status)
            await _rest(reader, head)


async def _rest(reader: asyncio.StreamReader, head: bytes) -> None:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            await reader.readexactly(int(line.partition(b":")[2]))
            return
    await reader.readuntil(b"0\r\n\r\n")


async def test_upgrade_offer_of_a_client_does_not_lose_its_body() -> None:
    offer = ["connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAEAAEAAAAIAAAAB"]
    content = json.dumps(body()).encode()
    async with serving(FakeBackend()) as gateway, gateway.connection() as (reader, writer):
        writer.write(request(content, f"content-length: {len(content)}", *offer))
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")


async def test_models_do_not_share_their_troubles() -> None:
    stuck, fine = FakeBackend("stuck", before=[asyncio.Event()]), FakeBackend("fine")
    async with serving(stuck, fine) as gateway:
        waiting = asyncio.create_task(gateway.chat(model="stuck"))
        await stuck.called.wait()
        assert (await gateway.chat(model="fine")).status_code == 200
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await gateway.settled()
    assert stuck.cancelled == 1


async def test_request_that_has_come_and_was_not_read_yet_is_answered_when_the_drain_begins() -> None:
    async with serving(FakeBackend()) as gateway:
        with socket.create_connection(("127.0.0.1", gateway.port)) as client:
            async with asyncio.timeout(10):
                while not gateway.state.connections:  # noqa: ASYNC110 - the server tells nobody
                    await asyncio.sleep(0.001)
            (connection,) = gateway.state.connections
            client.sendall(request())
            connection.shutdown()
            answer = await asyncio.to_thread(client.recv, 4096)
            assert answer.startswith(b"HTTP/1.1 200")


async def test_idle_connection_is_closed_when_the_drain_begins() -> None:
    async with serving(FakeBackend()) as gateway, gateway.connection() as (reader, _):
        async with asyncio.timeout(10):
            while not gateway.state.connections:  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.001)
        (connection,) = gateway.state.connections
        connection.shutdown()
        assert await reader.read() == b""
