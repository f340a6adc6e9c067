"""Keeps the load of one upstream fresh: asks its engine every second, and says once when it gets no answer.

Neighbours: backends/inquiry.py (asks), upstream.py (what is kept fresh), membership.py (starts this).
"""

from __future__ import annotations

import asyncio
import logging
import random

from backends.base import BackendState
from backends.errors import BackendError
from backends.inquiry import Inquiry
from backends.load import EngineCounts, EngineLoad
from routing.upstream import Upstream

INTERVAL_SECONDS = 1.0
# An engine whose numbers come later than this has none that are worth anything.
PATIENCE_SECONDS = 2.0
# So often is asked where there was no answer: an endpoint may have no /metrics at all.
MAX_INTERVAL_SECONDS = 30.0

logger = logging.getLogger(__name__)


async def keep_load(
    model: str, upstream: Upstream, counts: EngineCounts, interval_seconds: float = INTERVAL_SECONDS
) -> None:
    """Sets `upstream.load` until cancelled, to None whenever the engine is not READY or does not say, and adds to
    `counts`. One question at a time; after a failure twice as long a pause, up to MAX_INTERVAL_SECONDS. Does nothing
    for an engine that cannot be asked. `model` is for the log."""
    if _inquiry(upstream) is None:
        return
    name = upstream.backend.name
    last: EngineLoad | None = None
    pause_seconds = interval_seconds
    silent = False
    while True:
        if upstream.backend.state is not BackendState.READY:
            upstream.load = None
            pause_seconds = interval_seconds
        elif (failure := await _ask(upstream)) is None:
            if silent:
                logger.info("model %s on %s tells its load again", model, name)
            silent = False
            if upstream.load is not None:
                counts.add(last, upstream.load)
                last = upstream.load
            pause_seconds = interval_seconds
        else:
            upstream.load = None
            if not silent:
                logger.warning("model %s on %s does not tell its load, own counts decide: %s", model, name, failure)
            silent = True
            pause_seconds = min(2 * pause_seconds, MAX_INTERVAL_SECONDS)
        # Out of step with other gateways that ask the same engine.
        await asyncio.sleep(pause_seconds * random.uniform(0.8, 1.2))  # noqa: S311


async def _ask(upstream: Upstream) -> str | None:
    """None once `load` is fresh, otherwise why it is not."""
    inquiry = _inquiry(upstream)
    if inquiry is None:
        return "it cannot be asked"
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            upstream.load = await inquiry.load()
    except TimeoutError:
        return f"no answer within {PATIENCE_SECONDS:g} s"
    except BackendError as error:
        return error.message
    return None


def _inquiry(upstream: Upstream) -> Inquiry | None:
    """Looked up each time: an engine that is stopped and started again has a new one."""
    found: Inquiry | None = getattr(upstream.backend, "inquiry", None)
    return found
