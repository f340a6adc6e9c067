"""The numbers of all workers together, kept where the engines are kept.

Nothing is counted twice and nothing shown is taken back: a worker that does not answer in time counts with what it said
last, one that died goes on counting with that. Neighbours: keeper.py (its messages), totals.py (the rules).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from gateway.workers.channel import Channel
from gateway.workers.totals import Family, dump, lasting, merge

# A worker that is busy for longer than this counts with its last numbers.
PATIENCE_SECONDS = 1.0


@dataclass(eq=False)
class Member:
    """One worker as long as it lives: whether it accepts connections yet, its last numbers, and the answer that is
    awaited from it, if any."""

    index: int
    channel: Channel
    serving: bool = False
    page: Sequence[Family] = ()
    awaited: asyncio.Future[None] | None = field(default=None)

    def ask(self) -> asyncio.Future[None]:
        """Asks for its numbers; once at a time, so that a worker that hangs is not buried in questions."""
        if self.awaited is None:
            self.awaited = asyncio.get_running_loop().create_future()
            self.channel.send({"ask": "numbers"})
        return self.awaited

    def answered(self, page: Sequence[Family]) -> None:
        """Its numbers have come."""
        self.page = page
        self.settle()

    def settle(self) -> None:
        """Nobody needs to wait for it any more."""
        if self.awaited is not None:
            self.awaited.set_result(None)
            self.awaited = None


class Tally(Collector):
    """All workers that live, and what those that died had counted. Belongs to the keeper's event loop."""

    def __init__(self, own: CollectorRegistry, patience_seconds: float = PATIENCE_SECONDS) -> None:
        """`own` is what the keeper itself has to tell; this tally's own figures are added to it."""
        own.register(self)
        self._own = own
        self._patience_seconds = patience_seconds
        self._members: list[Member] = []
        self._seen: set[int] = set()
        self._left: list[Family] = []
        self._restarts = 0
        self._running: asyncio.Task[list[Family]] | None = None
        self._next: asyncio.Task[list[Family]] | None = None

    def join(self, index: int, channel: Channel) -> Member:
        """A worker has come up."""
        self._restarts += index in self._seen
        self._seen.add(index)
        member = Member(index, channel)
        self._members.append(member)
        return member

    def leave(self, member: Member) -> None:
        """A worker has ended."""
        self._members.remove(member)
        self._left = merge([self._left, lasting(member.page)])
        member.settle()

    @property
    def serving(self) -> int:
        """How many workers accept connections."""
        return sum(member.serving for member in self._members)

    async def total(self) -> list[Family]:
        """Everybody's numbers, none older than this call unless a worker hangs.

        However many ask, there is one round at a time: who asks during one shares the next with all who do.
        """
        if self._next is None:
            self._next = asyncio.create_task(self._round(self._running))
        return await asyncio.shield(self._next)

    async def _round(self, before: asyncio.Task[list[Family]] | None) -> list[Family]:
        if before is not None:
            await asyncio.wait({before})
        self._running, self._next = self._next, None
        asked = [member.ask() for member in self._members]
        if asked:
            await asyncio.wait(asked, timeout=self._patience_seconds)
        return merge([*(member.page for member in self._members), self._left, dump(self._own)])

    def collect(self) -> Iterator[Metric]:
        """How many workers there are."""
        yield GaugeMetricFamily("upshift_workers", "Processes that serve clients now.", value=self.serving)
        yield CounterMetricFamily(
            "upshift_worker_restarts", "Workers that ended unasked and were replaced.", value=self._restarts
        )
