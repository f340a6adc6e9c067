"""Follows the keys file: what it says is in force within a second of a change, in every worker for itself.

Neighbours: keysfile.py (reads it), auth.py (whose Authenticator is given the new keys), app.py (runs this).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from config.errors import ConfigError
from gateway.keysfile import KeysFile, load_keys
from gateway.ratelimit_store import StoreFull

# With the time that reading takes, a key that is revoked is refused well within a second.
LOOK_SECONDS = 0.25

logger = logging.getLogger("upshift")

Apply = Callable[[KeysFile], None]


async def follow(file: Path, apply: Apply) -> None:
    """Gives `apply` what the file says whenever it is another file than before, until cancelled. A file that cannot be
    used, or that is gone, changes nothing and is reported once; `apply` may raise ConfigError and StoreFull."""
    known: object = ()
    loaded: KeysFile | None = None
    while True:
        now = _identity(file)
        if now != known:
            try:
                # Parsing a large file takes longer than anybody's next token should.
                keys = await asyncio.to_thread(load_keys, file)
                if keys != loaded:
                    apply(keys)
                    if loaded is not None:
                        logger.info("%s has changed: %d keys are in force", file, len(keys.keys))
                    loaded = keys
            except (ConfigError, StoreFull) as error:
                logger.error("the API keys stay as they were: %s", error)
            known = now
        await asyncio.sleep(LOOK_SECONDS)


def _identity(file: Path) -> object:
    """What differs between two contents of a file, whether it was written or replaced; its error where it is gone."""
    try:
        found = os.stat(file)
    except OSError as error:
        return error.errno
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
