"""Messages between the keeper and one worker: JSON objects, one a line, over a socket pair.

Neighbours: keeper.py and link.py, the two ends. Both are ours, and what crosses is small and rare: states of engines
when they change, numbers when somebody scrapes.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping
from typing import Any

# The numbers of 1,000 models are 12 MiB.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024


class Channel:
    """One end of the pair. Belongs to one event loop; `close` it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, end: socket.socket) -> Channel:
        """Takes over `end`, a connected stream socket."""
        return cls(*await asyncio.open_unix_connection(sock=end, limit=MAX_MESSAGE_BYTES))

    def send(self, message: Mapping[str, Any]) -> None:
        """Never waits and never fails: a peer that is gone is noticed by `receive`."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def receive(self) -> dict[str, Any] | None:
        """The next message; None when the peer is gone, whatever it was saying."""
        try:
            line = await self._reader.readline()
        except ConnectionError:
            return None
        if not line.endswith(b"\n"):
            return None
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """Idempotent. What was sent still goes out."""
        self._writer.close()
