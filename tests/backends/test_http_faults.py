"""The client and a server that breaks off, floods or speaks nonsense: always an error in time, never a wrong answer."""

from __future__ import annotations

import asyncio

import pytest

from backends.errors import BackendProtocolError
from backends.http import HttpClient
from backends.http_connection import Connection
from tests.backends.peer import CHUNKED, Talk, answer, says, says_and_closes, serve

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

OK = b"HTTP/1.1 200 OK\r\n"
KIB = 1024


async def ask(client: HttpClient) -> tuple[bytes, BackendProtocolError | None]:
    """What was read, and the error that ended it."""
    body = b""
    try:
        response = await client.request("POST", "/", (), b"{}")
        try:
            async for chunk in response.chunks:
                body += chunk
        finally:
            response.close()
    except BackendProtocolError as error:
        return body, error
    return body, None


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"HTTP/1.1 20", id="half-a-status-line"),
        pytest.param(OK + b"content-le", id="half-a-head"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n", id="only-an-interim-response"),
    ],
)
async def test_end_before_a_whole_head_is_a_protocol_error(sent: bytes) -> None:
    async with serve(says_and_closes(sent)) as peer:
        client = HttpClient(peer.address)
        body, error = await ask(client)
        assert (body, error is None) == (b"", False)
        assert peer.connections == 1  # a connection that was never idle proves nothing by dying: not tried again
        await client.aclose()


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        pytest.param(OK + b"content-length: 10\r\n\r\nhello", b"hello", id="shorter-than-its-length"),
        pytest.param(CHUNKED + b"5\r\nhello\r\n", b"hello", id="no-last-chunk"),
        pytest.param(CHUNKED + b"9\r\nhello", b"hello", id="inside-a-chunk"),
        pytest.param(CHUNKED + b"5\r\nhello\r\n0\r\n", b"hello", id="no-final-line"),
    ],
)
async def test_cut_body_is_a_protocol_error_after_what_was_read(sent: bytes, read: bytes) -> None:
    async with serve(says_and_closes(sent)) as peer:
        client = HttpClient(peer.address)
        body, error = await ask(client)
        assert (body, type(error)) == (read, BackendProtocolError)
        await client.aclose()


@pytest.mark.parametrize("sent", [b"", OK + b"content-length: 10\r\n\r\nhello"], ids=["before-headers", "in-the-body"])
async def test_reset_is_a_protocol_error(sent: bytes) -> None:
    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.send(sent)
        talk.reset()

    async with serve(script, "tcp") as peer:
        client = HttpClient(peer.address)
        body, error = await ask(client)
        assert b"hello".startswith(body)
        assert error is not None
        assert peer.connections == 1
        await client.aclose()


# -- floods -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "again"),
    [
        pytest.param(OK, b"x-#: 1\r\n", id="many-headers"),
        pytest.param(OK, b"x-#: %s\r\n" % (b"a" * KIB), id="long-headers"),
        pytest.param(OK + b"x: ", b"a" * KIB, id="endless-value"),
        pytest.param(OK, b"a" * KIB, id="endless-name"),
        pytest.param(b"HTTP/1.1 200 ", b"a" * KIB, id="endless-reason"),
        pytest.param(b"", b"HTTP/1.1 103 E\r\nlink: x\r\n\r\n", id="interim-responses"),
        pytest.param(CHUNKED + b"0\r\n", b"x-#: 1\r\n", id="trailers"),
        pytest.param(CHUNKED + b"0\r\nx: ", b"a" * KIB, id="endless-trailer"),
        pytest.param(CHUNKED + b"5;", b"a" * KIB, id="endless-chunk-extension"),
        pytest.param(CHUNKED, b"0" * KIB, id="endless-chunk-size"),
    ],
)
async def test_flood_is_cut_off(first: bytes, again: bytes) -> None:
    stopped = asyncio.Event()
    sent_bytes = 0

    async def script(talk: Talk) -> None:
        nonlocal sent_bytes
        await talk.request()
        await talk.send(first)
        try:
            for number in range(1_000_000):
                await talk.send(piece := again.replace(b"#", b"%d" % number))
                sent_bytes += len(piece)
        finally:
            stopped.set()

    async with serve(script) as peer:
        client = HttpClient(peer.address)
        body, error = await ask(client)
        assert (body, error is None) == (b"", False)
        await stopped.wait()
        assert sent_bytes < 2048 * KIB
        await client.aclose()


async def test_long_stream_is_no_flood() -> None:
    class Wire(asyncio.Transport):
        def write(self, data: bytes | bytearray | memoryview) -> None:
            pass

        def abort(self) -> None:
            pass

        def is_closing(self) -> bool:
            return False

        def get_write_buffer_size(self) -> int:
            return 0

    connection = Connection(asyncio.get_running_loop(), 5.0, 5.0, lambda _: None, lambda _: None)
    connection.connection_made(Wire())
    asking = asyncio.create_task(connection.exchange(b"", b""))
    await asyncio.sleep(0)
    connection.data_received(CHUNKED)
    response = await asking
    for _ in range(20_000):  # 140,000 bytes of sizes, each in a read of its own
        connection.data_received(b"00001\r\n")
        connection.data_received(b"x\r\n")
        assert await anext(response.chunks) == b"x"
    response.close()


# -- a kept connection that has gone stale ----------------------------------------------------------------------------


async def test_stale_connection_is_replaced_once() -> None:
    requests: list[int] = []

    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.send(answer(b"%d" % talk.number))
        if talk.number == 1:
            await talk.request()  # and closes without a word, as a server does whose patience has just ended
            requests.append(talk.number)
        else:
            await talk.gone()

    async with serve(script) as peer:
        client = HttpClient(peer.address)
        assert await ask(client) == (b"1", None)
        assert await ask(client) == (b"2", None)
        assert (requests, peer.connections) == ([1], 2)
        await client.aclose()


async def test_request_is_not_sent_a_third_time() -> None:
    requests = 0

    async def script(talk: Talk) -> None:
        nonlocal requests
        await talk.request()
        requests += 1
        if talk.number <= 2:
            await both.wait() if requests == 2 else both.set()
            await talk.send(answer(b"hello"))
            await talk.request()
            requests += 1

    both = asyncio.Event()
    async with serve(script) as peer:
        client = HttpClient(peer.address)
        assert [body for body, _ in await asyncio.gather(ask(client), ask(client))] == [b"hello"] * 2
        assert "closed before a response" in str((await ask(client))[1])
        # Two before; then one on a stale connection and one on a fresh one. The second stale one is not touched.
        assert (requests, peer.connections) == (4, 3)
        await client.aclose()


async def test_answer_that_had_begun_is_not_asked_for_again() -> None:
    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.send(answer(b"hello"))
        await talk.request()
        await talk.send(b"HTTP/1.1 200 OK\r\n")

    async with serve(script) as peer:
        client = HttpClient(peer.address)
        assert await ask(client) == (b"hello", None)
        assert "cut short" in str((await ask(client))[1])
        assert peer.connections == 1
        await client.aclose()


async def test_connection_closed_while_idle_is_not_used() -> None:
    async with serve(says_and_closes(answer(b"hello"))) as peer:
        client = HttpClient(peer.address)
        for _ in range(3):
            assert await ask(client) == (b"hello", None)
        assert peer.connections == 3
        await client.aclose()


async def test_faulty_answer_does_not_leak_into_the_next() -> None:
    turn = iter([OK + b"content-length: 10\r\n\r\nhello\r\n\r\nHTTP/1.1 500 No\r\n\r\n", answer(b"good")])

    async def script(talk: Talk) -> None:
        await says(next(turn))(talk)

    async with serve(script) as peer:
        client = HttpClient(peer.address)
        response = await client.request("POST", "/", (), b"{}")
        assert await response.read(3) == b"hel"
        response.close()
        assert await ask(client) == (b"good", None)
        await client.aclose()
