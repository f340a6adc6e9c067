"""One request on its way through routing: who asks, and what has become of it so far.

Neighbours: router.py (writes it), the gateway's relay (gives it in, reads it).
"""

from __future__ import annotations

from collections.abc import Callable

from routing.policy import FAILOVER
from routing.upstream import Upstream


class Ticket:
    """`key` and `tier` are those of the API key, `session` is what the client calls its session, empty without one.
    `notify` is told the request's position now and then while it waits, 1 for the next one.

    Written by routing: `upstream`, the one asked last, None before and while waiting; `attempts`, how often one was
    asked; `waited_seconds`; `tried`, those that are not asked again; `resets`, attempts that may have cost an engine
    work; `entered_at`, `time.perf_counter()` of its coming; `elsewhere`, the reason for whom it gets once
    some are `tried`; `blamed`, the one whose failure was counted last.
    """

    # What nearly every request keeps to its end stays with the class: setting it each time cost half a microsecond.
    upstream: Upstream | None = None
    attempts = 0
    waited_seconds = 0.0
    tried: frozenset[Upstream] = frozenset()
    resets = 0
    entered_at = 0.0
    elsewhere = FAILOVER
    blamed: Upstream | None = None

    def __init__(
        self,
        key: str = "",
        tier: str | None = None,
        session: bytes = b"",
        notify: Callable[[int], None] | None = None,
    ) -> None:
        self.key = key
        self.tier = tier
        self.session = session
        self.notify = notify
