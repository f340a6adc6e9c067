"""Inference POSTs that the connection serves itself: framing, order, and what stands in their neighbourhood."""

from __future__ import annotations

import asyncio
import json

import pytest

from gateway.call import Call
from gateway.listener import ClientConnection
from tests.fakes import FakeBackend, chat_body, chat_events
from tests.gateway.running import CHAT, body, request, serving

EVENTS = chat_events("Hel", "lo")
STREAMED = json.dumps(body(stream=True)).encode()


@pytest.mark.parametrize(
    "target",
    [CHAT, CHAT + "?a=b", "/v1/chat%2Fcompletions", "/v1/%63hat/completions", "http://localhost" + CHAT],
)
async def test_every_spelling_of_the_path_is_served(target: str) -> None:
    async with serving(FakeBackend()) as gateway:
        answer = await gateway.raw(request(path=target).replace(b"host:", b"connection: close\r\nhost:"))
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert answer.endswith(b"\r\n\r\n" + chat_body())
        assert b"\r\ncontent-length: %d\r\n" % len(chat_body()) in answer
        assert b"\r\nconnection: close\r\n" in answer


async def test_client_of_http_1_0_gets_no_chunks() -> None:
    async with serving(FakeBackend(script=EVENTS)) as gateway:
        answer = await gateway.raw(request(STREAMED).replace(b"HTTP/1.1", b"HTTP/1.0"))
        head, _, content = answer.partition(b"\r\n\r\n")
        assert content == b"".join(EVENTS)
        assert b"transfer-encoding" not in head
        assert b"connection: close" in head


async def test_answers_come_in_the_order_of_pipelined_requests() -> None:
    first = asyncio.Event()
    backend = FakeBackend(script=[EVENTS[0], first, *EVENTS[1:]])
    live = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n"
    last = b"GET /v1/models/fake HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    async with serving(backend) as gateway, gateway.connection() as (reader, writer):
        writer.write(request(STREAMED) + live + request(b'{"model": "none"}') + last)
        await reader.readuntil(b"data: ")
        first.set()
        rest = await reader.read()
        places = [rest.index(mark) for mark in (b"0\r\n\r\nHTTP/1.1 200", b"model_not_found", b'"object":"model"')]
        assert places == sorted(places)
        assert rest.count(b"HTTP/1.1 ") == 3
        assert len(backend.requests) == 1


async def test_waiting_body_of_a_pipelined_request_is_not_read_without_bound() -> None:
    first = asyncio.Event()
    backend = FakeBackend(before=[first])
    async with serving(backend) as gateway, gateway.connection() as (reader, writer):
        writer.write(request() + request(json.dumps(body(x="a" * 4_000_000)).encode()))
        await backend.called.wait()
        [connection] = [each for each in gateway.state.connections if isinstance(each, ClientConnection)]
        for _ in range(10_000):
            if connection.flow.read_paused:
                break
            await asyncio.sleep(0)
        assert connection.flow.read_paused
        waiting, _ = connection.pipeline[0]
        assert isinstance(waiting, Call)
        assert waiting._size < 1_000_000
        first.set()
        answers = await reader.readuntil(b"}}}") + await reader.readuntil(b"}}}")
        assert answers.count(b"HTTP/1.1 200 OK") == 2


@pytest.mark.parametrize("pieces", [[b"a" * 30, b"b" * 80], [b"a" * 30, b"b" * 30]], ids=["too long", "too short"])
async def test_answer_of_another_length_than_announced_is_cut(pieces: list[bytes]) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"100")]
    async with serving(FakeBackend(script=list(pieces), headers=headers)) as gateway:
        answer = await gateway.raw(request())
        head, _, content = answer.partition(b"\r\n\r\n")
        assert b"content-length: 100" in head
        assert len(content) < 100
        await gateway.settled()
        assert gateway.lines()[0]["code"] == "backend_error"
        assert gateway.upstream.in_flight == 0


async def test_body_in_single_bytes_is_put_together() -> None:
    backend = FakeBackend()
    sent = json.dumps(body()).encode()
    async with serving(backend) as gateway, gateway.connection() as (reader, writer):
        writer.write(request(b"", "transfer-encoding: chunked"))
        for byte in sent:
            writer.write(b"1\r\n%c\r\n" % byte)
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")
        assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"
        assert backend.requests[0].body == sent


async def test_client_that_left_before_its_turn_is_not_served() -> None:
    backend = FakeBackend()
    async with serving(backend) as gateway, gateway.connection() as (_, writer):
        writer.write(request())
        for _ in range(50):
            if gateway.state.connections:
                break
            await asyncio.sleep(0)
        [connection] = gateway.state.connections
        connection.data_received(request())
        connection.connection_lost(None)
        await gateway.settled()
        assert backend.requests == []
        assert [line["code"] for line in gateway.lines()] == ["client_disconnected"]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request(b"{}"), b"400"),
        (request(path=CHAT).replace(b"application/json", b"text/plain"), b"415"),
        (request(json.dumps(body(model="other")).encode()), b"404"),
        (request().replace(b"host: localhost", b"host: evil.example"), b"421"),
    ],
)
async def test_a_refusal_says_its_length_once(sent: bytes, status: bytes) -> None:
    """Node's and aiohttp's clients take two as an attack, and their user never reads why."""
    async with serving(FakeBackend()) as gateway:
        answer = await gateway.raw(sent.replace(b"content-type:", b"connection: close\r\ncontent-type:"))
        head, _, content = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 " + status)
        names = [line.partition(b":")[0].lower() for line in head.split(b"\r\n")[1:]]
        assert len(set(names)) == len(names)
        assert b"content-length: %d" % len(content) in head
