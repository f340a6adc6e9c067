"""One request on its way through routing: who asks, and what has become of it so far.

Neighbours: router.py (writes it), the gateway's relay (gives it in, reads it).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, eq=False)
class Ticket:
    """`key` and `tier` are those of the API key, `session` is what the client calls its session, empty without one."""

    key: str = ""
    tier: str | None = None
    session: bytes = b""
