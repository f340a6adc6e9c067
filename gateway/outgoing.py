"""The transport of a client's connection as all see it that write to it: answers leave at the end of the loop's turn.

Neighbours: listener.py (puts it before the real one), backends/outbox.py (what for).
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from backends.outbox import outbox_of


class Outgoing(asyncio.Transport):
    """`transport`, with writes through the outbox of `loop`; whatever else ends the writing comes after them."""

    __slots__ = ("_outbox", "_transport", "is_closing", "write")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._outbox = outbox_of(loop)
        # The two that are called for each answer: without a call of ours in between. What is written leaves soon, in
        # the order of the calls.
        self.is_closing = transport.is_closing  # type: ignore[method-assign]
        self.write = partial(self._outbox.write, transport)  # type: ignore[method-assign]

    def get_write_buffer_size(self) -> int:
        """In bytes, nothing left out."""
        self._outbox.flush()
        return self._transport.get_write_buffer_size()

    def write_eof(self) -> None:
        """Behind everything written; what is written later is dropped, as whoever writes may not know of the end."""
        self._outbox.flush()
        self.write = _drop  # type: ignore[method-assign]
        self._transport.write_eof()

    def can_write_eof(self) -> bool:
        """Whether `write_eof` can be called."""
        return self._transport.can_write_eof()

    def close(self) -> None:
        """Once everything written has been sent."""
        self._outbox.flush()
        self._transport.close()

    def abort(self) -> None:
        """Now; what was written may be lost."""
        self._transport.abort()

    def pause_reading(self) -> None:
        """Nothing is read any more."""
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Reading goes on."""
        self._transport.resume_reading()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """About the connection."""
        return self._transport.get_extra_info(name, default)


def _drop(data: Any) -> None:  # noqa: ARG001 - a transport's signature
    return
