"""Messages of one connection that begin alike: their head is parsed once, and known by its bytes from then on.

Clients that keep their connection send the same head over and over, all but the length of the body, and an engine's
answers differ from one second to the next at most. Neighbours: http_connection.py (an engine's answers), the gateway's
listener.py (clients' requests).
"""

from __future__ import annotations

import re

_LENGTH = re.compile(rb"\r\ncontent-length: ([0-9]{1,9})(?=\r\n)", re.IGNORECASE)
_END = b"\r\n\r\n"
# A connection keeps the head for as long as it is open.
_MAX_BYTES = 8 * 1024
# With so many heads in a row that nobody has seen before, each with an id of its own perhaps, only every so many-th is
# looked at.
_PATIENCE = 16


class Repeated:
    """What the messages on one connection begin with. Only those count that one read brings, alone and whole."""

    __slots__ = ("_before", "_behind", "_misses")

    def __init__(self) -> None:
        self._before = self._behind = b""
        self._misses = 0

    def body_in(self, data: bytes) -> bytes | None:
        """The body, where `data` has the head that was learned, all but its length, and a whole body; else None."""
        before = self._before
        if not before or not data.startswith(before):
            return None
        end = data.find(_END, len(before)) + len(_END)
        if not data.startswith(b"%d%b" % (len(data) - end, self._behind), len(before)):
            return None
        self._misses = 0
        return data[end:]

    def learn(self, data: bytes) -> bool:
        """A parser has understood `data`, which began where a message begins. Whether that was one whole message, whose
        head is known from now on in place of the last one."""
        self._misses += 1
        if self._misses > _PATIENCE and self._misses % _PATIENCE:
            return False
        end = data.find(_END, 0, _MAX_BYTES) + len(_END)
        lengths = list(_LENGTH.finditer(data, 0, end))
        if len(lengths) != 1 or int(lengths[0][1]) != len(data) - end:
            return False
        start, stop = lengths[0].span(1)
        self._before, self._behind = data[:start], data[stop:end]
        return True
