"""Redis' protocol (RESP2) on one connection: calls go out pipelined, answers come back in their order.

One connection and no pool: what is sent later is done later, which limiter.py relies on, and a slow answer
keeps nobody else from asking. Neighbours: link.py (keeps a connection to whoever takes writes).
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

_IN_SCRIPT = re.compile(r"@user_script: ?\d+: -?([A-Z]{2,}) ")
# Longer than anything that is asked for; a peer that sends more is not a Redis that we know.
MAX_ANSWER_BYTES = 64 * 1024 * 1024


class RedisGone(Exception):
    """No answer: the connection is lost, was never there, or the answer took too long."""


class RedisRefused(Exception):
    """Redis answered with an error."""

    @property
    def code(self) -> str:
        """Of what kind it is, such as READONLY: the first word, and of what goes wrong in a script before Redis 7 the
        one in the middle of `ERR Error running script (…): @user_script: 7: -READONLY You can't…`."""
        text = str(self)
        inside = _IN_SCRIPT.search(text) if text.startswith("ERR ") else None
        return inside[1] if inside is not None else text.partition(" ")[0]


def moved_to(error: Exception) -> tuple[str, int] | None:
    """Where a node of a cluster says that the keys are; None where that is not what it says."""
    code, _, rest = str(error).partition(" ")
    host, _, port = rest.rpartition(" ")[2].rpartition(":")
    return (host.strip("[]"), int(port)) if code == "MOVED" and host and port.isdigit() else None


class Incomplete(Exception):
    """The rest of an answer has not come yet."""


def encode(words: Sequence[bytes]) -> bytes:
    """One command as bytes."""
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%b\r\n" % (len(word), word) for word in words]
    return b"".join(parts)


def decode(data: bytes | bytearray, at: int) -> tuple[Any, int]:
    """The answer that begins at `at`, and where it ends: int, bytes, None, a list of these, or RedisRefused (as a
    value). Raises Incomplete, and ValueError for what is no answer."""
    end = data.find(b"\r\n", at)
    if end < 0:
        raise Incomplete
    kind, line = data[at], bytes(data[at + 1 : end])
    at = end + 2
    if kind == 0x3A:  # :
        return int(line), at
    if kind == 0x2B:  # +
        return line, at
    if kind == 0x2D:  # -
        return RedisRefused(line.decode("utf-8", "replace")), at
    length = int(line)
    if kind == 0x24:  # $
        return _text(data, at, length)
    if kind == 0x2A:  # *
        return _list(data, at, length)
    raise ValueError("this is not Redis")


def _text(data: bytes | bytearray, at: int, length: int) -> tuple[bytes | None, int]:
    if length < 0:
        return None, at
    if length > MAX_ANSWER_BYTES:
        raise ValueError("an answer without end")
    end = at + length
    if len(data) < end + 2:
        raise Incomplete
    return bytes(data[at:end]), end + 2


def _list(data: bytes | bytearray, at: int, length: int) -> tuple[list[Any] | None, int]:
    if length < 0:
        return None, at
    items = []
    for _ in range(length):
        item, at = decode(data, at)
        items.append(item)
    return items, at


class Connection(asyncio.Protocol):
    """One connection; belongs to its event loop. `lost` is done when it has ended, for whatever reason."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._unsent: list[bytes] = []
        self._data = bytearray()
        self.lost: asyncio.Future[None] = self._loop.create_future()

    def call(self, *words: bytes) -> asyncio.Future[Any]:
        """Sends a command, together with others of this turn of the loop. The future gives its answer and raises
        RedisRefused or RedisGone; nobody has to wait for it."""
        answer: asyncio.Future[Any] = self._loop.create_future()
        if self.lost.done():
            answer.set_exception(RedisGone("the connection is lost"))
            answer.exception()
            return answer
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent.append(encode(words))
        self._waiting.append(answer)
        return answer

    def close(self) -> None:
        """Ends it when what was sent has left. Idempotent."""
        self._send()
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Ends it now, whatever its other end does. Idempotent."""
        if self._transport is not None:
            self._transport.abort()

    def _send(self) -> None:
        sent, self._unsent = self._unsent, []
        if self._transport is not None and not self.lost.done():
            self._transport.write(b"".join(sent))

    # -- asyncio's side --------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by name

    def data_received(self, data: bytes) -> None:
        """asyncio's."""
        self._data += data
        at = 0
        try:
            while at < len(self._data):
                answer, at = decode(self._data, at)
                self._answered(answer)
        except Incomplete:
            if len(self._data) > MAX_ANSWER_BYTES:
                self.abort()
        except (ValueError, IndexError):
            self.abort()
            return
        del self._data[:at]

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's."""
        if not self.lost.done():
            self.lost.set_result(None)
        while self._waiting:
            self._fail(self._waiting.popleft(), RedisGone(f"the connection is lost{f': {exc}' if exc else ''}"))

    def _answered(self, answer: Any) -> None:
        waiting = self._waiting.popleft()  # an answer to nothing: IndexError
        if isinstance(answer, RedisRefused):
            self._fail(waiting, answer)
        elif not waiting.done():
            waiting.set_result(answer)

    def _fail(self, waiting: asyncio.Future[Any], error: Exception) -> None:
        if not waiting.done():
            waiting.set_exception(error)
            waiting.exception()  # nobody has to look
