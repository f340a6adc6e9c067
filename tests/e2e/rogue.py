"""A server that is well by every look at it, and does with each inference call what a test tells it.

    async with Rogue(resetting()) as rogue: ...          # rogue.address, rogue.calls, rogue.left

A fault is a coroutine that gets the two ends of the connection after the whole request has been read. Runs in the
test's own event loop, on a bare socket: no HTTP library would send what some of these send.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Self

from tests import canary

Fault = Callable[["Rogue", asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % canary.ANSWER.encode()
DONE = b"data: [DONE]\n\n"
SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n"
ANSWER = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": canary.ANSWER}}]}).encode()


def whole(status: str, body: bytes = b"{}", *headers: str, kind: str = "application/json") -> bytes:
    """The bytes of a complete answer."""
    lines = [f"HTTP/1.1 {status}", f"content-type: {kind}", f"content-length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


class Rogue:
    """One server for the model "m". `calls` are those that arrived whole, `left` those whose caller went away first."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.calls = 0
        self.left = asyncio.Event()
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Nobody listens any more; what runs is cut."""
        if self._server is not None:
            self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def gone(self, reader: asyncio.StreamReader) -> None:
        """Returns when the caller has left; until then nothing is said."""
        with contextlib.suppress(ConnectionError):
            await reader.read()
        self.left.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._exchange(reader, writer):
                    pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        await reader.readexactly(int(length[0].partition(b":")[2]) if length else 0)
        method, path, _ = head.split(b" ", 2)
        if method == b"GET":
            models = json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode()
            writer.write(whole("200 OK", models) if path in (b"/health", b"/v1/models") else whole("404 Not Found"))
            await writer.drain()
            return True
        self.calls += 1
        await self.fault(self, reader, writer)
        return False


def saying(*pieces: bytes) -> Fault:
    """Says this, piece by piece, and closes in order."""

    async def fault(_: Rogue, __: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)

    return fault


def resetting(*pieces: bytes) -> Fault:
    """Says this and resets the connection."""

    async def fault(rogue: Rogue, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await saying(*pieces)(rogue, reader, writer)
        if pieces:
            # A reset overtakes what is unread: the caller must have seen the beginning.
            await asyncio.sleep(0.1)
        sock: socket.socket = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    return fault


def hanging(*pieces: bytes) -> Fault:
    """Says this and then nothing, until the caller leaves."""

    async def fault(rogue: Rogue, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await saying(*pieces)(rogue, reader, writer)
        await rogue.gone(reader)

    return fault
