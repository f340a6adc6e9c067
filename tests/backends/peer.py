"""A server on a Unix socket, on TCP or with TLS, that says exactly what a test tells it to, byte for byte."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import struct
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

from backends.http import HttpClient, HttpResponse
from tests.backends.certificates import serving, trusting

Transport = Literal["tcp", "tls", "unix"]

LIMIT_SECONDS = 10.0
TRANSPORTS: tuple[Transport, ...] = ("tcp", "tls", "unix")
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


class Talk:
    """One connection as the server sees it; `number` counts from 1."""

    def __init__(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.number = number
        self._reader = reader
        self._writer = writer

    async def request(self) -> tuple[bytes, bytes]:
        """Head and body of the next request. Raises asyncio.IncompleteReadError when none comes any more."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = 0
        for line in head.lower().split(b"\r\n"):
            if line.startswith(b"content-length:"):
                length = int(line.removeprefix(b"content-length:"))
        return head, await self._reader.readexactly(length)

    async def send(self, *pieces: bytes) -> None:
        """Each piece is written on its own. Raises OSError once the client has gone."""
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            # Lets the client read it before the next one is there.
            await asyncio.sleep(0)

    async def gone(self) -> None:
        """Returns when the client has closed its side."""
        with contextlib.suppress(ConnectionError):
            while await self._reader.read(65536):
                pass

    def reset(self) -> None:
        """RST instead of FIN; TCP only."""
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    def cut(self) -> None:
        """The end of TCP without TLS having said that it ends."""
        with socket.socket(fileno=os.dup(self._writer.get_extra_info("socket").fileno())) as same:
            same.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Orderly end of the connection."""
        self._writer.close()


Script = Callable[[Talk], Awaitable[None]]


class Peer:
    """The listening server: where it is, and how many connections have come."""

    def __init__(self, script: Script) -> None:
        self.address = ""
        self.tls: ssl.SSLContext | None = None  # what a client needs for it
        self.connections = 0
        self._script = script
        self._tasks: set[asyncio.Task[None]] = set()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: plays the script, then closes it."""
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        talk = Talk(self.connections, reader, writer)
        try:
            await self._script(talk)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client left, which is for the client's side of the test to judge
        finally:
            self._tasks.discard(task)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def client(self, **options: Any) -> HttpClient:
        """A client of it; `options` as HttpClient's."""
        return HttpClient(self.address, **{"tls": self.tls, **options})

    async def finish(self) -> None:
        """Ends the scripts that still run."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def serve(script: Script, over: Transport = "unix", tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    """A running Peer; everything inside has LIMIT_SECONDS. `tls` instead of a certificate for loopback."""
    peer = Peer(script)
    with tempfile.TemporaryDirectory() as folder:
        async with asyncio.timeout(LIMIT_SECONDS):
            if over == "unix":
                path = Path(folder, "peer.sock")
                server = await asyncio.start_unix_server(peer.accept, path)
                peer.address = f"unix:{path}"
            else:
                context = (tls or serving()) if over == "tls" else None
                # A client that has gone says no farewell in TLS: nobody should wait for one.
                farewell_seconds = 0.5 if context else None
                server = await asyncio.start_server(
                    peer.accept, "127.0.0.1", 0, ssl=context, ssl_shutdown_timeout=farewell_seconds
                )
                scheme = "https" if context else "http"
                peer.address = "{}://{}:{}".format(scheme, *server.sockets[0].getsockname())
                peer.tls = trusting() if context else None
            try:
                yield peer
            finally:
                server.close()
                await peer.finish()
                await server.wait_closed()


def says(*pieces: bytes) -> Script:
    """A script that answers every request of a connection with the same bytes."""

    async def script(talk: Talk) -> None:
        while True:
            await talk.request()
            await talk.send(*pieces)

    return script


def says_and_closes(*pieces: bytes) -> Script:
    """A script that answers one request and ends the connection."""

    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.send(*pieces)

    return script


def answer(body: bytes, *headers: bytes, status: int = 200) -> bytes:
    """A whole response with Content-Length."""
    head = b"".join(header + b"\r\n" for header in headers)
    return b"HTTP/1.1 %d Status\r\n%scontent-length: %d\r\n\r\n%s" % (status, head, len(body), body)


async def fetch(client: HttpClient, body: bytes = b"") -> bytes:
    """The whole body of one answer."""
    response = await client.request("POST", "/", (), body)
    try:
        return await fetch_rest(response)
    finally:
        response.close()


async def fetch_rest(response: HttpResponse) -> bytes:
    """What is left of a body."""
    return b"".join([chunk async for chunk in response.chunks])
