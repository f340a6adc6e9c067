"""How much memory the request bodies of a process take, so that large ones together cannot take all of it.

Neighbours: call.py (counts what arrives and what is gone), listener.py (one of these for all connections).
"""

from __future__ import annotations

# A body up to this is not counted: `max_connections` bounds those, and they are nearly all.
SMALL_BYTES = 64 * 1024


class Bodies:
    """`held` bytes of large bodies are in memory, of which `most` may be."""

    __slots__ = ("held", "most")

    def __init__(self, most: int = 1 << 28) -> None:
        self.most = most
        self.held = 0

    def has_room(self, own: int) -> bool:
        """Whether a body that has `own` of what is held may go on. One that is alone always may."""
        return self.held <= self.most or self.held == own
