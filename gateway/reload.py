"""Another configuration without a restart: when the file changes or SIGHUP comes, and only as a whole.

A file that cannot be used changes nothing and is reported. Neighbours: server.py and workers/keeper.py (run this),
gateway.py (what is applied), config/load.py (reads), keyswatch.py (the keys file).
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from config.errors import ConfigError
from config.load import Loaded
from config.schema import Settings
from gateway.ratelimit_store import StoreFull

# The file is looked at this often, and read when it has changed and lies still from one look to the next: of one that
# is being written, nothing or a part would be read, and nothing is a configuration.
WATCH_SECONDS = 0.25

# What is fixed when the process starts.
_FIXED = (
    "server.host", "server.port", "server.workers", "server.max_connections", "server.max_connections_per_address",
    "server.max_bodies_bytes",
    "server.drain_seconds", "server.drain_delay_seconds", "tls", "admin", "log", "tracing", "redis", "routing.trace",
)  # fmt: skip

# Asked early: of a terminal that is gone the answer is no.
_IN_TERMINAL = sys.stderr.isatty()

logger = logging.getLogger("upshift")

Stamp = tuple[int, int, int] | None


@dataclass(slots=True)
class Source:
    """Where the configuration comes from: `load` reads it again, `loaded` is the one in effect."""

    load: Callable[[], Loaded]
    loaded: Loaded


class Reloader:
    """Brings changes of `source` to `apply`, which raises ConfigError or StoreFull where it can not be done."""

    def __init__(self, source: Source, apply: Callable[[Settings], Awaitable[None]]) -> None:
        self._source = source
        self._apply = apply
        self._asked = asyncio.Event()
        self._stamp = _stamp(source.loaded.file)

    def ask(self) -> None:
        """Reload now, whether the file has changed or not."""
        self._asked.set()

    async def run(self) -> None:
        """Watches until cancelled."""
        last = self._stamp
        while True:
            asked = await self._wait()
            stamp, before = _stamp(self._source.loaded.file), last
            last = stamp
            if asked or self._stamp != stamp == before:
                self._stamp = stamp
                await self._reload()

    async def _wait(self) -> bool:
        try:
            async with asyncio.timeout(WATCH_SECONDS):
                await self._asked.wait()
        except TimeoutError:
            return False
        self._asked.clear()
        return True

    async def _reload(self) -> None:
        before = self._source.loaded
        try:
            loaded = await asyncio.to_thread(self._source.load)
            await self._apply(loaded.settings)
        except (ConfigError, StoreFull) as error:
            logger.error("the configuration stays as it was: %s", error)
            return
        self._source.loaded = loaded
        logger.info("the configuration was reloaded%s", f" from {loaded.file}" if loaded.file else "")
        for place in _waiting_for_restart(before, loaded):
            logger.warning("%s has changed; that takes a restart", place)


def _waiting_for_restart(before: Loaded, after: Loaded) -> Iterator[str]:
    for place in _FIXED:
        value = attrgetter(place)
        if value(before.settings) != value(after.settings):
            yield place


def _stamp(file: Path | None) -> Stamp:
    """Changes when the file does; None where there is none, or while it is being replaced."""
    if file is None:
        return None
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def terminal_is_gone() -> bool:
    """Whether a SIGHUP means what it meant first: the terminal that this was started from has been closed."""
    if not _IN_TERMINAL:
        return False
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return True
    return False
