"""TLS to an engine: who is trusted, what a failure says, and that its stream is as whole as the one below it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import socket
import ssl
from datetime import datetime
from pathlib import Path

import pytest

from backends.errors import BackendProtocolError, BackendUnavailable
from backends.http import HttpClient, client_tls
from tests.backends.certificates import authority, serving, trusting, write_files
from tests.backends.peer import CHUNKED, Talk, answer, fetch, fetch_rest, says, says_and_closes, serve

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])

MIB = 1024 * 1024
GOOD = says(answer(b"hello"))


async def failure(client: HttpClient) -> str:
    """Why there is no connection."""
    try:
        with pytest.raises(BackendUnavailable) as caught:
            await fetch(client)
    finally:
        await client.aclose()
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- who is trusted ---------------------------------------------------------------------------------------------------


async def test_certificate_of_an_unknown_authority_is_refused() -> None:
    async with serve(GOOD, "tls") as peer:
        assert "its certificate is refused: unable to get local issuer" in await failure(HttpClient(peer.address))


async def test_certificate_for_another_name_is_refused() -> None:
    async with serve(GOOD, "tls", tls=serving("engine.example")) as peer:
        message = await failure(peer.client())
        assert "its certificate is refused: IP address mismatch" in message
        by_name = peer.address.replace("127.0.0.1", "localhost")
        assert "Hostname mismatch, certificate is not valid for 'localhost'" in await failure(
            HttpClient(by_name, tls=trusting())
        )


async def test_certificate_that_is_over_is_refused() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    over = authority().issue_cert("127.0.0.1", not_before=datetime(2020, 1, 1), not_after=datetime(2020, 2, 1))
    over.configure_cert(context)
    async with serve(GOOD, "tls", tls=context) as peer:
        assert "certificate has expired" in await failure(peer.client())


async def test_authority_in_a_file_is_trusted_and_the_name_is_sent(tmp_path: Path) -> None:
    names: list[str] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("localhost").configure_cert(context)
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    ca_file, _, _ = write_files(tmp_path)
    async with serve(GOOD, "tls", tls=context) as peer:
        client = HttpClient(peer.address.replace("127.0.0.1", "localhost"), tls=client_tls(str(ca_file)))
        assert [await fetch(client), await fetch(client)] == [b"hello"] * 2
        assert (names, peer.connections) == (["localhost"], 1)
        await client.aclose()


async def test_missing_authority_file_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        client_tls(str(tmp_path / "none.pem"))


async def test_client_certificate_that_is_wanted_and_missing_is_told() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("127.0.0.1").configure_cert(context)
    authority().configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    async with serve(GOOD, "tls", tls=context) as peer:
        client = peer.client()
        # A TLS 1.3 server finds out after the handshake, with the request on its way; asyncio's sends no alert.
        with pytest.raises(BackendProtocolError, match=r"certificate required|TLS stream was cut off"):
            await fetch(client)
        await client.aclose()
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with serve(GOOD, "tls", tls=context) as peer:
        assert "TLS handshake" in await failure(peer.client())


# -- handshakes that fail ---------------------------------------------------------------------------------------------


async def test_server_without_tls_is_told_in_one_line() -> None:
    async def script(talk: Talk) -> None:
        await talk.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await talk.gone()

    async with serve(script, "tcp") as peer:
        client = HttpClient(peer.address.replace("http:", "https:"), tls=trusting())
        assert "the TLS handshake failed: " in await failure(client)


async def test_plain_request_to_a_tls_server_is_a_protocol_error() -> None:
    async with serve(GOOD, "tls") as peer:
        client = HttpClient(peer.address.replace("https:", "http:"))
        with pytest.raises(BackendProtocolError):
            await fetch(client)
        await client.aclose()


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
async def test_end_during_the_handshake_is_unavailable(reset: bool) -> None:
    async def script(talk: Talk) -> None:
        if reset:
            talk.reset()

    async with serve(script, "tcp") as peer:
        client = HttpClient(peer.address.replace("http:", "https:"), tls=trusting())
        message = await failure(client)
        assert "during the TLS handshake" in message or "reset by peer" in message


async def test_handshake_that_takes_too_long_is_unavailable_and_closed() -> None:
    closed = asyncio.Event()

    async def script(talk: Talk) -> None:
        await talk.gone()
        closed.set()

    async with serve(script, "tcp") as peer:
        address = peer.address.replace("http:", "https:")
        client = HttpClient(address, tls=trusting(), connect_timeout_seconds=0.05)
        assert "within 0.05 s" in await failure(client)
        await closed.wait()


async def test_cancelling_the_handshake_closes_the_connection(nothing_is_left_open: None) -> None:
    shaking, closed = asyncio.Event(), asyncio.Event()

    async def script(talk: Talk) -> None:
        shaking.set()
        await talk.gone()
        closed.set()

    async with serve(script, "tcp") as peer:
        client = HttpClient(peer.address.replace("http:", "https:"), tls=trusting())
        task = asyncio.create_task(fetch(client))
        await shaking.wait()
        task.cancel()
        await closed.wait()
        with pytest.raises(asyncio.CancelledError):
            await task
        await client.aclose()


# -- the stream -------------------------------------------------------------------------------------------------------


async def test_older_tls_and_large_bodies_both_ways() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert("127.0.0.1").configure_cert(context)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    body = os.urandom(3 * MIB)

    async def script(talk: Talk) -> None:
        while True:
            _, received = await talk.request()
            await talk.send(answer(received))

    for tls in (context, serving()):
        async with serve(script, "tls", tls=tls) as peer:
            client = peer.client()
            assert [await fetch(client, body) == body for _ in range(2)] == [True, True]
            await client.aclose()


async def test_body_that_ends_with_the_connection_is_whole_after_a_farewell_only() -> None:
    async def cut(talk: Talk) -> None:
        await talk.request()
        await talk.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        talk.cut()

    async with serve(says_and_closes(b"HTTP/1.1 200 OK\r\n\r\nhello"), "tls") as peer:
        client = peer.client()
        assert await fetch(client) == b"hello"
        await client.aclose()
    async with serve(cut, "tls") as peer:
        client = peer.client()
        response = await client.request("GET", "/")
        chunks = aiter(response.chunks)
        assert await anext(chunks) == b"hello"
        with pytest.raises(BackendProtocolError, match="cut"):
            await anext(chunks)
        response.close()
        await client.aclose()


def answer_and_leave(listener: socket.socket, pieces: list[bytes]) -> None:
    """A server with threads, which closes whether or not its client keeps up."""
    plain, _ = listener.accept()
    with serving().wrap_socket(plain, server_side=True) as server:
        server.recv(65536)
        for piece in pieces:
            server.sendall(piece)
        server.setblocking(False)
        with contextlib.suppress(ssl.SSLError):
            server.unwrap()  # says farewell, and does not wait for the client's


@pytest.mark.parametrize("framed", [True, False], ids=["chunked", "until-the-end"])
async def test_slow_reader_gets_everything_from_a_server_that_has_gone(framed: bool) -> None:
    """uvloop's own TLS transport drops here what it has received and the reader has not yet taken: 213 KB of this."""
    body = os.urandom(64 * 1024)
    if framed:
        pieces = [CHUNKED, *[b"%x\r\n%s\r\n" % (len(body), body)] * 8, b"0\r\n\r\n"]
    else:
        pieces = [b"HTTP/1.1 200 OK\r\n\r\n", *[body] * 8]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = asyncio.create_task(asyncio.to_thread(answer_and_leave, listener, pieces))
        client = HttpClient(f"https://127.0.0.1:{listener.getsockname()[1]}", tls=trusting())
        response = await client.request("GET", "/")
        await server
        for _ in range(20):  # whatever the loop has to say about the end, it says now
            await asyncio.sleep(0)
        assert await fetch_rest(response) == body * 8
        response.close()
        await client.aclose()


async def test_nothing_is_left_of_many_connections(nothing_is_left_open: None) -> None:
    async with serve(GOOD, "tls") as peer:
        client = peer.client()
        assert await asyncio.gather(*(fetch(client) for _ in range(20))) == [b"hello"] * 20
        await client.aclose()
    gc.collect()
