"""A TCP line to a server that a test can cut: what is on its way neither arrives nor is refused, in one way or both.

    async with Replica("m") as server, Line(server.port) as line: ...        # line.address
    await line.cut("down")      # from now on nothing comes from the server, and nobody gets a new connection
    await line.heal()           # what was held back arrives

As behind a network that drops packets: connections stay open, and new ones are neither accepted nor refused, because
the queue of the listening socket is full and the kernel ignores whoever knocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import Literal, Self

Way = Literal["up", "down", "both"]

_HOST = "127.0.0.1"
# Somebody whom the kernel has not let in after this long is ignored: locally it takes a thousandth of that.
_IGNORED_SECONDS = 0.5


class Line:
    """From a port of its own to `server_port`. Belongs to the event loop that it is entered in."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._up, self._down = asyncio.Event(), asyncio.Event()
        self._listener = socket.socket()
        self._accepting: asyncio.Task[None] | None = None
        self._carrying: set[asyncio.Task[None]] = set()
        self._knocking: list[socket.socket] = []

    @property
    def address(self) -> str:
        return f"http://{_HOST}:{self._listener.getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._listener.bind((_HOST, 0))
        self._listener.listen(1)
        self._listener.setblocking(False)
        await self.heal()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end([*self._carrying, *([self._accepting] if self._accepting else [])])
        for sock in (self._listener, *self._knocking):
            sock.close()

    async def cut(self, way: Way = "both") -> None:
        """From now on nothing passes that `way`, "up" to the server or "down" from it, and nobody gets in."""
        if way != "down":
            self._up.clear()
        if way != "up":
            self._down.clear()
        if self._accepting is not None:
            await self._end([self._accepting])
        while await self._is_let_in():
            pass

    async def heal(self) -> None:
        """All that was held back goes on."""
        for sock in self._knocking:
            sock.close()
        self._knocking.clear()
        self._up.set()
        self._down.set()
        self._accepting = asyncio.create_task(self._accept())

    async def _is_let_in(self) -> bool:
        sock = socket.socket()
        sock.setblocking(False)
        self._knocking.append(sock)
        try:
            async with asyncio.timeout(_IGNORED_SECONDS):
                await asyncio.get_running_loop().sock_connect(sock, self._listener.getsockname())
        except TimeoutError:
            return False
        return True

    async def _accept(self) -> None:
        while True:
            caller, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            task = asyncio.create_task(self._carry(caller))
            self._carrying.add(task)
            task.add_done_callback(self._carrying.discard)

    async def _carry(self, caller: socket.socket) -> None:
        with caller, socket.socket() as server:
            server.setblocking(False)
            with contextlib.suppress(OSError):
                await asyncio.get_running_loop().sock_connect(server, (_HOST, self._server_port))
                async with asyncio.TaskGroup() as ways:
                    ways.create_task(_pass_on(caller, server, self._up))
                    ways.create_task(_pass_on(server, caller, self._down))

    @staticmethod
    async def _end(tasks: list[asyncio.Task[None]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pass_on(source: socket.socket, sink: socket.socket, is_open: asyncio.Event) -> None:
    """All bytes and the end of them, while the way is open."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await loop.sock_recv(source, 65536):
            await is_open.wait()
            await loop.sock_sendall(sink, data)
    await is_open.wait()
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
