"""The upstreams of one artifact from start to stop: their backends, and a fresh look at the load of each.

Neighbours: upstream.py, watch.py (the load), the gateway's served.py (what an artifact is).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from backends.load import EngineCounts
from routing.upstream import Upstream
from routing.watch import keep_load


class Membership:
    """Owns the backends of `upstreams` while it runs. `model` is the configured name. Belongs to one event loop."""

    def __init__(self, model: str, upstreams: Sequence[Upstream]) -> None:
        self.model = model
        self.upstreams = tuple(upstreams)
        self._watching: dict[Upstream, asyncio.Task[None]] = {}

    async def start(self, counts: EngineCounts) -> None:
        """Starts every backend; returns at once. What their engines count is added to `counts`."""
        for upstream in self.upstreams:
            await upstream.backend.start()
            if upstream not in self._watching:
                watch = keep_load(self.model, upstream, counts)
                self._watching[upstream] = asyncio.create_task(watch, name=f"load of {self.model}")

    async def stop(self) -> None:
        """Ends every backend within its grace, all at the same time. Idempotent."""
        await asyncio.gather(*map(self._end, self.upstreams), return_exceptions=True)

    async def _end(self, upstream: Upstream) -> None:
        watching = self._watching.pop(upstream, None)
        if watching is not None:
            watching.cancel()
            await asyncio.wait({watching})
        upstream.load = None
        await upstream.backend.stop()
