"""What arrives on the socket before it is a request, and what never becomes one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from gateway import listener
from gateway.keys import hash_of
from gateway.listener import MAX_HEAD_BYTES
from tests.engine import wait_for
from tests.fakes import FakeBackend, chat_events
from tests.gateway.running import CHAT, Gateway, body, request, serving

EVENTS = chat_events("Hel", "lo")


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\nhost: localhost\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx: a\x00b\r\n\r\n",
        b"GET /livez HTTP/1.1\nhost: localhost\n\n",
        b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx: a\r\n b\r\n\r\n",
        request(b"0\r\n\r\n", "content-length: 5", "transfer-encoding: chunked"),
        request(b"", "content-length: 5", "content-length: 6"),
        request(b"", "content-length: -1"),
        request(b"x\r\n", "transfer-encoding: chunked"),
        request(b"10000000000000004\r\n", "transfer-encoding: chunked"),
        request(b"ZZ\r\n", "transfer-encoding: chunked", "expect: 100-continue"),
        request(b"ZZ\r\n", "transfer-encoding: chunked", "expect: 100-continue", path="/admin/explain"),
        request(b"", "transfer-encoding: gzip, nonsense"),
    ],
    ids=lambda sent: repr(sent)[:40],
)
async def test_what_is_not_http_is_refused_and_closed(sent: bytes) -> None:
    backend = FakeBackend()
    async with serving(backend) as gateway:
        answer = await gateway.raw(sent)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        head, _, content = answer.partition(b"\r\n\r\n")
        assert b"connection: close" in head
        assert json.loads(content)["error"]["code"] == "invalid_request"
        assert backend.requests == []
        await gateway.settled()
        assert all(line["status"] == 499 for line in gateway.lines())


@pytest.mark.parametrize("step", [1000, 10_000_000], ids=["in pieces", "at once"])
@pytest.mark.parametrize("kind", ["one header", "many headers", "url", "unfinished", "blank lines"])
async def test_endless_head_is_refused_while_it_arrives(kind: str, step: int) -> None:
    long = b"a" * MAX_HEAD_BYTES
    sent = {
        "one header": b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx: " + long + b"\r\n\r\n",
        "many headers": b"GET /livez HTTP/1.1\r\nhost: localhost\r\n" + b"x: 1\r\n" * (MAX_HEAD_BYTES // 6) + b"\r\n",
        "url": b"GET /livez?" + long + b" HTTP/1.1\r\nhost: localhost\r\n\r\n",
        "unfinished": b"GET /livez HTTP/1.1\r\nx: " + long,
        "blank lines": b"\r\n" * MAX_HEAD_BYTES,
    }[kind]
    async with serving(FakeBackend()) as gateway, gateway.connection() as (reader, writer):
        for start in range(0, len(sent), step):
            writer.write(sent[start : start + step])
            await asyncio.sleep(0)
        answer = await reader.readuntil(b"}}")
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "headers_too_large"


async def test_large_body_behind_a_small_head_in_one_read_is_fine() -> None:
    content = json.dumps(body(x="a" * 4 * MAX_HEAD_BYTES)).encode()
    async with serving(FakeBackend()) as gateway, gateway.connection() as (reader, writer):
        for _ in range(2):
            writer.write(request(content))
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            await reader.readuntil(b"}}}")


@pytest.mark.parametrize("earlier", [b"", request()], ids=["first request", "second request"])
async def test_slow_head_is_given_up(monkeypatch: pytest.MonkeyPatch, earlier: bytes) -> None:
    monkeypatch.setattr(listener, "HEAD_TIMEOUT_SECONDS", 0.05)
    async with serving(FakeBackend()) as gateway, gateway.connection() as (reader, writer):
        if earlier:
            writer.write(earlier)
            await reader.readuntil(b"}}}")
        writer.write(b"GET /livez HTTP/1.1\r\nhost: loc")
        assert (await reader.read()).startswith(b"HTTP/1.1 408 ")


async def test_silent_connection_is_closed_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HEAD_TIMEOUT_SECONDS", 0.05)
    async with serving(FakeBackend()) as gateway:
        assert await gateway.raw(b"") == b""


async def test_long_answer_outlives_the_time_for_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "HEAD_TIMEOUT_SECONDS", 0.02)
    more = asyncio.Event()
    backend = FakeBackend(script=[EVENTS[0], more, *EVENTS[1:]])
    async with serving(backend) as gateway, gateway.connection() as (reader, writer):
        writer.write(request(json.dumps(body(stream=True)).encode()) + b"GET /livez HTT")
        await reader.readuntil(b"data: ")
        asyncio.get_running_loop().call_later(0.1, more.set)
        assert b"data: [DONE]" in await reader.readuntil(b"0\r\n\r\n")


@pytest.mark.parametrize("before", [b"", request()], ids=["alone", "behind a pipelined request"])
async def test_garbage_behind_a_request_does_not_end_up_in_its_answer(before: bytes) -> None:
    backend = FakeBackend(script=[EVENTS[0], asyncio.Event()])
    async with serving(backend) as gateway, gateway.connection() as (reader, writer):
        writer.write(request(json.dumps(body(stream=True)).encode()))
        await reader.readuntil(b"data: ")
        writer.write(before + b"\x00garbage\r\n\r\n")
        rest = await asyncio.gather(reader.read(), return_exceptions=True)
        assert b"400" not in (rest[0] if isinstance(rest[0], bytes) else b"")
        await gateway.settled()
        assert (gateway.upstream.in_flight, backend.aborted) == (0, 1)


async def test_garbage_in_one_read_with_its_request_is_one_refusal() -> None:
    async with serving(FakeBackend()) as gateway:
        answer = await gateway.raw(request() + b"\x00garbage\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        await gateway.settled()
        assert gateway.upstream.in_flight == 0


async def test_connections_are_limited_and_the_rest_is_told() -> None:
    async with serving(FakeBackend(), max_connections=2) as gateway:
        async with gateway.connection() as first, gateway.connection() as second:
            for reader, writer in (first, second):
                writer.write(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
                assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
            answer = await gateway.raw(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b'"overloaded"' in answer
        gateway.disconnect()
        assert (await gateway.client.get("/livez")).status_code == 200


async def test_http_1_0_is_answered_and_closed() -> None:
    async with serving(FakeBackend()) as gateway:
        answer = await gateway.raw(b"GET /livez HTTP/1.0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in answer


async def test_request_for_the_whole_server_and_absolute_addresses() -> None:
    async with serving(FakeBackend()) as gateway:
        absolute = b"GET http://localhost/livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        assert (await gateway.raw(absolute)).startswith(b"HTTP/1.1 200 ")
        for line in (b"OPTIONS * HTTP/1.1", b"CONNECT localhost:1 HTTP/1.1"):
            answer = await gateway.raw(line + b"\r\nhost: localhost\r\nconnection: close\r\n\r\n")
            assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 404 ", b"HTTP/1.1 405 "))


async def test_chunked_bodies_are_read() -> None:
    content = json.dumps(body()).encode()
    chunks = b"%x\r\n%s\r\n%x;ext=1\r\n%s\r\n0\r\n\r\n" % (10, content[:10], len(content) - 10, content[10:])
    async with serving(FakeBackend()) as gateway, gateway.connection() as (reader, writer):
        writer.write(request(chunks, "transfer-encoding: chunked"))
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")


async def test_websockets_are_not_spoken() -> None:
    upgrade = ["connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13", "sec-websocket-key: eA=="]
    async with serving(FakeBackend()) as gateway, gateway.connection() as (reader, writer):
        writer.write(request(b"", *upgrade, path=CHAT, method="GET"))
        assert (await reader.readline()).startswith(b"HTTP/1.1 405 ")


async def test_offer_that_the_reads_cut_in_two_is_refused_and_its_body_not_taken_for_requests() -> None:
    inner = request(path="/v1/completions")
    sent = request(inner, f"content-length: {len(inner)}", "upgrade: h2c", "connection: upgrade")
    cut = sent.index(b"upgrade:") + 3
    backend = FakeBackend()
    async with serving(backend) as gateway, gateway.connection() as (reader, writer):
        writer.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        writer.write(sent[:cut])
        connection = await first_connection(gateway)
        await asyncio.to_thread(wait_for, lambda: connection._head_bytes == cut)
        writer.write(sent[cut:])
        answer = await reader.read()
        assert (answer.count(b"HTTP/1.1 "), answer[:13]) == (1, b"HTTP/1.1 400 ")
    assert backend.requests == []


async def first_connection(gateway: Gateway) -> Any:
    await asyncio.to_thread(wait_for, lambda: bool(gateway.state.connections))
    return next(iter(gateway.state.connections))


CHUNKED = "transfer-encoding: chunked"


async def test_fields_behind_a_body_are_no_headers(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(json.dumps({"keys": [{"name": "a", "hash": hash_of("key")}]}))
    async with serving(FakeBackend(), edge={"auth": {"keys_file": str(file)}}) as gateway:
        content = json.dumps(body()).encode()
        chunk = b"%x\r\n%b\r\n0\r\n" % (len(content), content)
        for path in (CHAT, "/v1/models"):
            sent = request(chunk + b"x-api-key: key\r\n\r\n", CHUNKED, "connection: close", path=path)
            assert (await gateway.raw(sent)).split(b" ", 2)[1] in {b"401", b"405"}
        sent = request(chunk + b"x-request-id: mine\r\n\r\n", CHUNKED, "x-api-key: key", "connection: close")
        answer = await gateway.raw(sent)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"x-request-id: req-" in answer


@pytest.mark.parametrize("field", [b"content-length: 9", b"transfer-encoding: chunked", b"host: b", b"upgrade: h2c"])
async def test_field_behind_a_body_that_speaks_of_framing_is_refused(field: bytes) -> None:
    async with serving(FakeBackend()) as gateway:
        for path in (CHAT, "/v1/models"):
            sent = request(
                b"1\r\n{\r\n0\r\n%b\r\n\r\nGET /livez HTTP/1.1\r\nhost: a\r\n\r\n" % field, CHUNKED, path=path
            )
            answer = await gateway.raw(sent)
            assert b"HTTP/1.1 400 " in answer or (path != CHAT and answer.startswith(b"HTTP/1.1 405 "))
            assert b'"ok"' not in answer


@pytest.mark.parametrize("path", [CHAT, "/livez"])
@pytest.mark.parametrize(
    "endless",
    [b"0\r\n" + b"a: b\r\n" * 100_000, b"0\r\na: " + b"b" * 600_000, b"1;" + b"a" * 600_000],
    ids=["trailers", "trailer", "chunk extension"],
)
async def test_endless_fields_behind_a_body_are_given_up(path: str, endless: bytes) -> None:
    async with serving(FakeBackend()) as gateway, gateway.connection() as (reader, writer):
        writer.write(request(b"", CHUNKED, path=path))
        writer.write(endless)
        answers = await reader.read()
        assert answers.count(b"HTTP/1.1 ") == (1 if path == CHAT else 2)
        assert b"HTTP/1.1 400 " in answers


async def test_body_behind_an_early_answer_is_read_as_it_is() -> None:
    """What is done to an offer to upgrade was done to such a body too: two bytes more each time, read as a request."""
    async with serving(FakeBackend()) as gateway, gateway.connection() as (reader, writer):
        hidden = b"GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n"
        content = b"\r\nupgrade:" * (len(hidden) // 2) + hidden
        writer.write(request(b"", f"content-length: {len(content)}", path="/nothing"))
        assert b"HTTP/1.1 404 " in await reader.readuntil(b"\r\n\r\n")
        await reader.readuntil(b"}}")
        writer.write(content + request(b"", "connection: close", path="/livez", method="GET"))
        rest = await reader.read()
        assert rest.count(b"HTTP/1.1 ") == 1
        assert rest.endswith(b'{"status":"ok"}')


async def deaf(gateway: Gateway, sent: bytes, *, again: bool = False) -> None:
    """Asks, `again` each time that there is an answer, and reads none, until the gateway has closed the connection."""
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", gateway.port))
        async with asyncio.timeout(20):
            answers = -1
            while answers < 0 or gateway.state.connections:
                if answers < 0 or (again and gateway.state.total_requests > answers):
                    answers = gateway.state.total_requests
                    with contextlib.suppress(OSError):
                        await loop.sock_sendall(client, sent)
                await asyncio.sleep(0.001)


@pytest.mark.parametrize("last", [True, False], ids=["that ends the connection", "that does not"])
async def test_last_answer_that_nobody_reads_keeps_no_connection(last: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "UNREAD_SECONDS", 0.2)
    monkeypatch.setattr(listener, "KEEP_ALIVE_SECONDS", 0.2)
    # More than the kernel takes, and all of it in one piece: for the gateway the answer is over.
    async with serving(FakeBackend(script=[b'{"x":"' + b"x" * 20_000_000 + b'"}'])) as gateway:
        content = json.dumps(body()).encode()
        more = ["connection: close"] if last else []
        await deaf(gateway, request(content, f"content-length: {len(content)}", *more))
        await gateway.settled()
        assert gateway.upstream.in_flight == 0


async def test_nobody_is_answered_again_who_has_not_read_his_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "UNREAD_SECONDS", 0.2)
    backend = FakeBackend(script=[b'{"x":"' + b"x" * 20_000_000 + b'"}'])
    async with serving(backend) as gateway:
        content = json.dumps(body()).encode()
        await deaf(gateway, request(content, f"content-length: {len(content)}") * 3)
        assert len(backend.requests) == 1


async def test_pipelined_answers_wait_for_their_reader() -> None:
    backend = FakeBackend(script=[b'{"x":"' + b"x" * 5_000_000 + b'"}'])
    async with serving(backend) as gateway, gateway.connection() as (reader, writer):
        content = json.dumps(body()).encode()
        for path in (CHAT, "/livez", CHAT):
            writer.write(request(content, f"content-length: {len(content)}", path=path))
        for status, size in ((200, 5_000_008), (405, None), (200, 5_000_008)):
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 %d " % status)
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            assert size in {None, length}
            await reader.readexactly(length)
        assert len(backend.requests) == 2


async def test_answers_of_the_control_plane_that_nobody_reads_keep_no_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listener, "CONTROL_SECONDS", 0.2)
    async with serving(FakeBackend()) as gateway:
        await deaf(gateway, request(b"", "accept: */*", path="/openapi.json", method="GET"), again=True)
