"""What is written in one turn of the event loop leaves together at its end: one write per connection, all in a row.

A write to a peer that sleeps wakes it, which costs several times as much as the write itself, on a virtual machine more
than anything else in a call; and it wakes up for one message. Written in a row, the second message finds it awake.
Neighbours: http_connection.py (requests to engines), the gateway's outgoing.py (answers to clients).
"""

from __future__ import annotations

import asyncio
import logging
from weakref import WeakKeyDictionary

logger = logging.getLogger(__name__)

# More than this is not kept for the end of the turn, nor copied together: large pieces pay for their own write, and
# their writer should learn at once when nobody reads.
LARGE_BYTES = 64 * 1024
# With no more exchanges than this under way there is nobody to wait for, and a turn of the loop costs more.
FEW = 3


class Outbox:
    """The writes of one event loop that are still to be made. `exchanges` is how many are under way with engines,
    which those who have them count."""

    # Not the loop: where it is looked up by its loop, neither would ever go.
    __slots__ = ("_waiting", "exchanges")

    def __init__(self) -> None:
        self._waiting: dict[asyncio.WriteTransport, bytes] = {}
        self.exchanges = 0

    def write(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        """Writes `data` behind what was written to `transport` before, by the end of the turn."""
        waiting = self._waiting
        if not waiting:
            if self.exchanges <= FEW:
                transport.write(data)
                return
            asyncio.get_running_loop().call_soon(self.flush)
        before = waiting.get(transport)
        if before is not None:
            data = before + data
        waiting[transport] = data
        if len(data) > LARGE_BYTES:
            self.flush()

    def flush(self) -> None:
        """Makes all of them now. What was for a transport that has been closed meanwhile is lost; one that refuses to
        write is aborted, and harms nobody else."""
        waiting, self._waiting = self._waiting, {}
        for transport, data in waiting.items():
            if transport.is_closing():
                continue
            try:
                transport.write(data)
            except Exception:
                logger.exception("a connection that could not be written to is closed")
                transport.abort()


_outboxes: WeakKeyDictionary[asyncio.AbstractEventLoop, Outbox] = WeakKeyDictionary()


def outbox_of(loop: asyncio.AbstractEventLoop) -> Outbox:
    """The one of `loop`."""
    found = _outboxes.get(loop)
    if found is None:
        found = _outboxes[loop] = Outbox()
    return found
