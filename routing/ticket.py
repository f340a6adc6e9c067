"""One request on its way through routing: who asks, and what has become of it so far.

Neighbours: router.py (writes it), the gateway's relay (gives it in, reads it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from routing.upstream import Upstream


@dataclass(slots=True, eq=False)
class Ticket:
    """`key` and `tier` are those of the API key, `session` is what the client calls its session, empty without one.
    `notify` is told the request's position now and then while it waits, 1 for the next one.

    Written by routing: `upstream`, the one asked last, None before and while waiting; `attempts`, how often one was
    asked; `waited_seconds`; `tried`, those that are not asked again; `resets`, attempts that may have cost an engine
    work; `entered_at`, `time.perf_counter()` of its coming; `too_long`, whether a kind of engine had too little
    context; `blamed`, the one whose failure was counted last.
    """

    key: str = ""
    tier: str | None = None
    session: bytes = b""
    notify: Callable[[int], None] | None = None
    upstream: Upstream | None = None
    attempts: int = 0
    waited_seconds: float = 0.0
    tried: frozenset[Upstream] = frozenset()
    resets: int = 0
    entered_at: float = 0.0
    too_long: bool = False
    blamed: Upstream | None = None
