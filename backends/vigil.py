"""Looks after an engine that is READY: one that hangs, rather than dies, has to be noticed by somebody.

Neighbours: process.py (ends and restarts it), probe.py (what is asked), kinds.py (of whom, how often).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from backends import probe
from backends.http import HttpClient
from backends.kinds import EngineKind, Timing


async def keep_vigil(client: HttpClient, kind: EngineKind, names: Sequence[str], timing: Timing) -> None:
    """Never returns; raises Unfit for an engine that hangs. Counts looks and not seconds: a machine that was suspended
    is not held against it."""
    silent = stalled = idle = 0
    last: probe.Work | None = None
    while True:
        await asyncio.sleep(timing.look_interval_seconds)
        silent = 0 if await probe.answers(client, timing.look_timeout_seconds) else silent + 1
        if silent >= timing.hang_looks:
            raise probe.Unfit(f"hung: {silent} times in a row no answer to /health")
        work = None if silent else await _work(client, kind, timing)
        stands = work is not None and last is not None and work.steps == last.steps
        busy = work is not None and work.requests > 0
        stalled = stalled + 1 if stands and busy else 0
        idle = idle + 1 if stands and not busy else 0
        last = work
        if stalled >= timing.stall_looks:
            seconds = stalled * timing.look_interval_seconds
            raise probe.Unfit(f"hung: nothing computed for {seconds:g} s though it has requests")
        if kind.computes is not None and idle >= timing.idle_looks:
            idle = 0
            if not await kind.computes(client, names, timing.idle_answer_seconds) and (
                await _work(client, kind, timing) == work
            ):
                raise probe.Unfit("hung: idle, and a request of ours was not answered")


async def keep_vigil_until(
    asked: asyncio.Event, client: HttpClient, kind: EngineKind, names: Sequence[str], timing: Timing
) -> None:
    """The same, until `asked` is set."""
    vigil = asyncio.create_task(keep_vigil(client, kind, names, timing))
    waiting = asyncio.create_task(asked.wait())
    try:
        await asyncio.wait({vigil, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if vigil.done():
            vigil.result()
    finally:
        vigil.cancel()
        waiting.cancel()
        await asyncio.gather(vigil, waiting, return_exceptions=True)


async def _work(client: HttpClient, kind: EngineKind, timing: Timing) -> probe.Work | None:
    return await probe.work(client, kind.requests, kind.steps, timing.look_timeout_seconds)
