"""Follows the store of the keys: what it holds is in force within a second of a change, in every worker for itself.

Neighbours: keystore.py (the stores), auth.py (whose Authenticator is given the new keys), gateway.py (runs this).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from config.errors import ConfigError
from gateway.keysfile import KeysFile
from gateway.keystore import KeyStore
from gateway.ratelimit_store import StoreFull

# With the time that reading takes, a key that is revoked is refused well within a second.
LOOK_SECONDS = 0.25

logger = logging.getLogger("upshift")

Apply = Callable[[KeysFile], None]


async def follow(store: KeyStore, apply: Apply, in_force: KeysFile | None = None) -> None:
    """Gives `apply` what the store holds whenever that is something else than before, or than what is `in_force` at
    first, until cancelled. One that cannot be used, or that has lost everything, changes nothing and is reported once;
    `apply` may raise ConfigError and StoreFull."""
    known: object = ()
    loaded = in_force if in_force is not None and in_force.keys else None
    complaint = ""
    while True:
        # Stores block: parsing a large file takes longer than anybody's next token should.
        now = await asyncio.to_thread(store.stamp)
        if now != known:
            try:
                keys = await asyncio.to_thread(store.load)
                if keys is None and loaded is not None:
                    logger.error("the API keys stay as they were: %s holds none any more", store.where)
                elif keys is not None and keys != loaded:
                    apply(keys)
                    if loaded is not None:
                        logger.info("%s has changed: %d keys are in force", store.where, len(keys.keys))
                    loaded = keys
            except (ConfigError, StoreFull, ValueError) as error:
                # Tried again until it works: it may be the reading that failed, and a key that was revoked be among
                # what was to be read.
                if str(error) != complaint:
                    logger.error("the API keys stay as they were: %s", error)
                complaint = str(error)
            else:
                known, complaint = now, ""
        await asyncio.sleep(LOOK_SECONDS)
