"""The client and a server that behaves: requests, bodies, timeouts, backpressure."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.errors import BackendTimeout, BackendUnavailable
from backends.http import HttpClient
from backends.http_connection import HIGH_WATER_BYTES
from tests.backends.peer import (
    CHUNKED,
    TRANSPORTS,
    Talk,
    Transport,
    answer,
    fetch,
    fetch_rest,
    says,
    says_and_closes,
    serve,
)

# The gateway runs on uvloop; its transports differ in what they allow after an abort.
pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

MIB = 1024 * 1024


@pytest.mark.parametrize("over", TRANSPORTS)
async def test_request_is_sent_whole_and_its_answer_read(over: Transport) -> None:
    async def script(talk: Talk) -> None:
        head, body = await talk.request()
        await talk.send(answer(head + body, b"X-Seen: Yes"))

    async with serve(script, over) as peer:
        client = peer.client()
        response = await client.request("POST", "/v1/x", [(b"x-request-id", b"req-1")], b'{"a":1}')
        assert (response.status, response.headers[0]) == (200, (b"x-seen", b"Yes"))
        host = "localhost" if over == "unix" else peer.address.partition("//")[2]
        head = f"POST /v1/x HTTP/1.1\r\nhost: {host}\r\nx-request-id: req-1\r\ncontent-length: 7\r\n\r\n"
        assert await response.read(10_000) == head.encode() + b'{"a":1}'
        response.close()
        await client.aclose()


async def test_get_has_no_content_length() -> None:
    async def script(talk: Talk) -> None:
        head, _ = await talk.request()
        await talk.send(answer(head))

    async with serve(script) as peer:
        client = HttpClient(peer.address)
        response = await client.request("GET", "/health")
        assert await response.read(10_000) == b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n"
        response.close()
        await client.aclose()


async def test_large_body_arrives_whole() -> None:
    async def script(talk: Talk) -> None:
        _, body = await talk.request()
        await talk.send(answer(b"%d %d" % (len(body), body.count(b"x"))))

    async with serve(script) as peer:
        client = HttpClient(peer.address)
        assert await fetch(client, body=b"x" * (3 * MIB)) == b"%d %d" % (3 * MIB, 3 * MIB)
        await client.aclose()


@pytest.mark.parametrize(
    ("message", "body"),
    [
        pytest.param(answer(b"hello"), b"hello", id="length"),
        pytest.param(answer(b""), b"", id="empty"),
        pytest.param(CHUNKED + b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", b"hello", id="chunked"),
        pytest.param(CHUNKED + b"2;a=b\r\nhe\r\n3\r\nllo\r\n0\r\nx-t: 1\r\n\r\n", b"hello", id="extension-and-trailer"),
        pytest.param(b"HTTP/1.1 204 No Content\r\n\r\n", b"", id="204"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"hello"), b"hello", id="100"),
        pytest.param(b"HTTP/1.1 103 E\r\nlink: x\r\n\r\n" * 3 + answer(b"hello"), b"hello", id="103-thrice"),
    ],
)
@pytest.mark.parametrize("piece_bytes", [1, 7, 4096])
async def test_body_is_read_however_it_is_framed_and_cut(message: bytes, body: bytes, piece_bytes: int) -> None:
    pieces = [message[start : start + piece_bytes] for start in range(0, len(message), piece_bytes)]
    async with serve(says(*pieces)) as peer:
        client = HttpClient(peer.address)
        response = await client.request("GET", "/")
        assert b"link" not in dict(response.headers)
        assert await response.read(100) == body
        response.close()
        assert await fetch(client) == body
        assert peer.connections == 1
        await client.aclose()


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(min_size=1, max_size=200), max_size=20), st.lists(st.integers(0, 4000), max_size=20))
async def test_chunks_join_to_the_body_for_all_splits(chunks: list[bytes], cuts: list[int]) -> None:
    message = CHUNKED + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    ends = [0, *sorted(cut for cut in cuts if cut < len(message)), len(message)]
    pieces = [message[start:end] for start, end in itertools.pairwise(ends)]
    async with serve(says(*pieces)) as peer:
        client = HttpClient(peer.address)
        assert [await fetch(client), await fetch(client)] == [b"".join(chunks)] * 2
        assert peer.connections == 1
        await client.aclose()


async def test_body_without_length_ends_with_the_connection() -> None:
    async with serve(says_and_closes(b"HTTP/1.1 200 OK\r\n\r\nhello")) as peer:
        client = HttpClient(peer.address)
        assert [await fetch(client), await fetch(client)] == [b"hello", b"hello"]
        assert peer.connections == 2
        await client.aclose()


async def test_events_are_handed_on_as_they_come_and_together_when_the_reader_is_late() -> None:
    read = asyncio.Event()

    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.send(CHUNKED, b"2\r\na\n\r\n")
        await read.wait()
        await talk.send(b"2\r\nb\n\r\n2\r\nc\n\r\n0\r\n\r\n")

    async with serve(script) as peer:
        client = HttpClient(peer.address)
        response = await client.request("GET", "/")
        chunks = aiter(response.chunks)
        assert await anext(chunks) == b"a\n"
        read.set()
        assert [chunk async for chunk in chunks] == [b"b\nc\n"]
        response.close()
        await client.aclose()


async def test_redirect_is_not_followed() -> None:
    async with serve(says(answer(b"", b"location: http://127.0.0.1:1/", status=302))) as peer:
        client = HttpClient(peer.address)
        response = await client.request("GET", "/")
        assert response.status == 302
        response.close()
        await client.aclose()


# -- time and space ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n"], ids=["silent", "half-a-head"])
async def test_missing_headers_time_out_and_close_the_connection(sent: bytes) -> None:
    closed = asyncio.Event()

    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.send(sent)
        await talk.gone()
        closed.set()

    async with serve(script) as peer:
        client = HttpClient(peer.address, response_timeout_seconds=0.02)
        with pytest.raises(BackendTimeout, match=r"No response within 0\.02 s"):
            await client.request("GET", "/")
        await closed.wait()
        assert peer.connections == 1
        await client.aclose()


async def test_stalled_body_times_out_after_what_was_read() -> None:
    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.send(CHUNKED + b"3\r\nabc\r\n")
        await talk.gone()

    async with serve(script) as peer:
        client = HttpClient(peer.address, idle_timeout_seconds=0.02)
        response = await client.request("GET", "/")
        chunks = aiter(response.chunks)
        assert await anext(chunks) == b"abc"
        with pytest.raises(BackendTimeout, match=r"No data within 0\.02 s"):
            await anext(chunks)
        response.close()
        await client.aclose()


async def test_slow_reader_does_not_time_out() -> None:
    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.send(CHUNKED)
        await waited.wait()
        await talk.send(b"3\r\nabc\r\n")
        await over.wait()
        await talk.send(b"3\r\ndef\r\n0\r\n\r\n")

    waited, over = asyncio.Event(), asyncio.Event()
    async with serve(script) as peer:
        client = HttpClient(peer.address, idle_timeout_seconds=0.02)
        slow = await client.request("GET", "/")
        asyncio.get_running_loop().call_soon(waited.set)
        assert await anext(slow.chunks) == b"abc"
        with pytest.raises(BackendTimeout):  # as good as a clock: more than the idle timeout has gone by
            await fetch(client)
        over.set()
        assert await fetch_rest(slow) == b"def"
        slow.close()
        await client.aclose()


@pytest.mark.parametrize("size", [1, 1000, 100_000], ids=["tiny-chunks", "chunks", "large-chunks"])
async def test_slow_reader_stops_the_server_and_loses_nothing(size: int) -> None:
    count = max(16 * MIB // size // (64 if size == 1 else 1), 1)
    chunk = b"%x\r\n%s\r\n" % (size, b"x" * size)
    stuck = asyncio.Event()
    sent_bytes = 0

    async def script(talk: Talk) -> None:
        nonlocal sent_bytes
        await talk.request()
        await talk.send(CHUNKED)
        batch = max(64 * 1024 // len(chunk), 1)
        for start in range(0, count, batch):
            sending = asyncio.ensure_future(talk.send(chunk * min(batch, count - start)))
            done, _ = await asyncio.wait({sending}, timeout=0.3)
            if not done:
                stuck.set()
            await sending
            sent_bytes += batch * len(chunk)
        await talk.send(b"0\r\n\r\n")

    async with serve(script) as peer:
        client = HttpClient(peer.address)
        response = await client.request("GET", "/")
        await stuck.wait()
        # What the reader has not taken: ours, one more read (the overhead of its pieces included), two socket buffers.
        assert sent_bytes < 2 * MIB
        assert response.held_bytes < HIGH_WATER_BYTES + 3 * MIB
        assert sum([len(chunk) async for chunk in response.chunks]) == count * size
        response.close()
        await client.aclose()


# -- what cannot even be sent -----------------------------------------------------------------------------------------


async def test_refused_or_missing_endpoint_is_unavailable() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        tcp = "http://{}:{}".format(*closed.getsockname())
        for address in (tcp, "unix:/nonexistent/engine.sock"):
            client = HttpClient(address)
            with pytest.raises(BackendUnavailable, match="No connection to"):
                await client.request("GET", "/")
            await client.aclose()


async def test_endpoint_that_does_not_accept_is_unavailable() -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for each in (first, second):
            each.setblocking(False)
            each.connect_ex(full.getsockname())
        client = HttpClient("http://{}:{}".format(*full.getsockname()), connect_timeout_seconds=0.05)
        with pytest.raises(BackendUnavailable, match=r"within 0\.05 s"):
            await client.request("GET", "/")
        await client.aclose()


@pytest.mark.parametrize(
    "address",
    [
        "",
        "unix:relative",
        "unix:",
        "https://",
        "https://x/v1",
        "ftp://x",
        "http://:p@x",
        "http://@x",
        "http://x#y",
        "http://",
        "http://u@x",
        "http://x/v1",
        "http://x?y",
        "http://x:a",
        "x:1",
    ],
)
async def test_addresses_that_mean_nothing_are_refused(address: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - urlsplit has words of its own
        HttpClient(address)


async def test_tls_settings_for_an_address_without_tls_are_refused() -> None:
    for address in ("http://127.0.0.1:1", "unix:/x"):
        with pytest.raises(ValueError, match="without TLS"):
            HttpClient(address, tls=ssl.create_default_context())
