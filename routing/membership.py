"""The upstreams of one artifact from start to stop: their backends, the load of each, and replicas that join and leave.

Neighbours: upstream.py, watch.py (the load), backends/discovery.py (who is there), the gateway's served.py (what an
artifact is).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from backends.base import Backend
from backends.discovery import Discovery, Target
from backends.load import EngineCounts
from routing.upstream import Upstream
from routing.watch import keep_load

# How often a replica that has left is looked at, whether it may go.
LEAVING_SECONDS = 0.1

logger = logging.getLogger(__name__)

Upstreams = tuple[Upstream, ...]


class Membership:
    """Owns the backends of `upstreams` while it runs. `model` is the configured name. Belongs to one event loop.

    Where the only backend is a Discovery, its upstream is the seat of the replicas that it finds: they are what
    `upstreams` holds in its place, as long as there are any. A replica that leaves gets no new requests, finishes what
    runs on it, and is the same upstream if it comes back meanwhile.
    """

    def __init__(self, model: str, backends: Sequence[Backend], enroll: Callable[[Backend], Upstream]) -> None:
        """`enroll` makes the upstream of a backend, now or of a replica that joins later."""
        self.model = model
        self.upstreams: Upstreams = tuple(map(enroll, backends))
        self._enroll = enroll
        self._seats = self.upstreams
        self._watching: dict[Upstream, asyncio.Task[None]] = {}
        self._following: list[asyncio.Task[None]] = []
        self._leaving: dict[Upstream, asyncio.Task[None]] = {}

    async def start(self, counts: EngineCounts, changed: Callable[[Upstreams, Upstreams], None]) -> None:
        """Starts every backend; returns at once. What their engines count is added to `counts`; `changed` is told, with
        those before and those from now on, when replicas join or leave."""
        for upstream in self._seats:
            await self._begin(upstream, counts)
            if isinstance(upstream.backend, Discovery):
                following = self._follow(upstream.backend, counts, changed)
                self._following.append(asyncio.create_task(following, name=f"members of {self.model}"))
                self._following[-1].add_done_callback(_report_end)

    async def stop(self) -> None:
        """Ends every backend within its grace, all at the same time. Idempotent."""
        tasks = [*self._following, *self._leaving.values()]
        self._following.clear()
        for task in tasks:
            task.cancel()
        everybody = {*self._seats, *self.upstreams, *self._leaving}
        await asyncio.gather(*tasks, *map(self._end, everybody), return_exceptions=True)

    @property
    def leaving(self) -> Upstreams:
        """Replicas that have left and finish what runs on them."""
        return tuple(self._leaving)

    @property
    def in_flight(self) -> int:
        """Requests that run on it, those on replicas that are leaving included."""
        return sum(upstream.in_flight for upstream in (*self.upstreams, *self._leaving))

    async def _begin(self, upstream: Upstream, counts: EngineCounts) -> None:
        await upstream.backend.start()
        if upstream not in self._watching:
            watch = keep_load(self.model, upstream, counts)
            self._watching[upstream] = asyncio.create_task(watch, name=f"load of {self.model}")

    async def _end(self, upstream: Upstream) -> None:
        watching = self._watching.pop(upstream, None)
        if watching is not None:
            watching.cancel()
            await asyncio.wait({watching})
        upstream.load = None
        await upstream.backend.stop()

    async def _follow(
        self, discovery: Discovery, counts: EngineCounts, changed: Callable[[Upstreams, Upstreams], None]
    ) -> None:
        present: dict[Target, Upstream] = {}
        left: dict[Target, Upstream] = {}
        while True:
            targets = discovery.targets
            left = {target: upstream for target, upstream in left.items() if upstream in self._leaving}
            for target in targets:
                if target not in present:
                    back = left.pop(target, None)
                    present[target] = self._enroll(discovery.backend(target)) if back is None else self._welcome(back)
                    await self._begin(present[target], counts)
                    logger.info("model %s: replica %s joins", self.model, target.address)
            gone = {target: upstream for target, upstream in present.items() if target not in targets}
            present = {target: present[target] for target in targets}
            self._put(tuple(present.values()) or self._seats, changed)
            for target, upstream in gone.items():
                logger.info("model %s: replica %s leaves, %d run on it", self.model, target.address, upstream.in_flight)
                self._leaving[upstream] = asyncio.create_task(self._leave(upstream))
            left |= gone
            if discovery.targets is targets:
                await discovery.changed()

    def _welcome(self, upstream: Upstream) -> Upstream:
        """`upstream`, which was about to leave."""
        self._leaving.pop(upstream).cancel()
        return upstream

    def _put(self, members: Upstreams, changed: Callable[[Upstreams, Upstreams], None]) -> None:
        before, self.upstreams = self.upstreams, members
        if members != before:
            changed(before, members)

    async def _leave(self, upstream: Upstream) -> None:
        while upstream.in_flight:  # noqa: ASYNC110 - nobody tells, and nothing is paid per request for it
            await asyncio.sleep(LEAVING_SECONDS)
        # From here on nobody can have it back.
        del self._leaving[upstream]
        await self._end(upstream)


def _report_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        logger.critical("replicas join and leave no more", exc_info=task.exception())
