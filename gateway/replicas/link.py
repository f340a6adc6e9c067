"""One connection to whichever of several Redis servers takes writes, and the word whether there is one.

A request asks only where a connection is known to be good, so an outage costs the few that find it out a timeout each
and the rest nothing; getting it back is the work of `run`. Neighbours: wire.py (the protocol), limiter.py (what is
asked).
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from config.redis import RedisSettings, RedisUrl
from gateway.replicas.wire import Connection, RedisGone, RedisRefused, moved_to

# So many answers in a row may be late before the connection counts as dead.
MAX_LATE = 3
# Of the timeout: a loop that was held up has an answer in its socket that it has not read yet.
GRACE_SECONDS = 0.002
CONNECT_SECONDS = 2.0
FIRST_DELAY_SECONDS = 0.05
MAX_DELAY_SECONDS = 1.0
# Having been connected for this long means that the last trouble is over.
STEADY_SECONDS = 10.0
# Redis cannot do what it is asked, for nobody: the connection is worth nothing until that is over.
_USELESS = frozenset(
    {"READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "MOVED", "NOAUTH", "NOPERM"}
    | {"MISCONF", "NOREPLICAS", "BUSY", "NOSCRIPT"}
)

logger = logging.getLogger("upshift")


class Link:
    """Belongs to one event loop; `run` must run as long as it is used. `on_up` is called at each new connection."""

    def __init__(self, settings: RedisSettings, scripts: Sequence[bytes], on_up: Callable[[], None]) -> None:
        self._urls = settings.urls
        self._password_file = settings.password_file
        self._probe = f"{{{settings.prefix}}}:probe".encode()
        self._timeout_seconds = settings.timeout_ms / 1000
        self._scripts = scripts
        self._on_up = on_up
        self._connection: Connection | None = None
        self._late = 0
        # Set when the first try to connect is over, whatever came of it.
        self.tried = asyncio.Event()
        self._down_since: float | None = None
        self._why = ""

    @property
    def up(self) -> bool:
        """Whether asking makes sense."""
        return self._connection is not None

    def send(self, *words: bytes) -> asyncio.Future[Any]:
        """Sends and does not wait. Raises RedisGone where there is no connection."""
        if self._connection is None:
            raise RedisGone(self._why or "not connected")
        return self._connection.call(*words)

    async def ask(self, *words: bytes) -> Any:
        """The answer, within the timeout. Raises RedisGone and RedisRefused."""
        answer = self.send(*words)
        timer = asyncio.get_running_loop().call_later(self._timeout_seconds - GRACE_SECONDS, self._on_late, answer)
        try:
            result = await answer
        except RedisRefused as error:
            if error.code in _USELESS:
                self._drop(str(error))
            raise
        finally:
            timer.cancel()
        self._late = 0
        return result

    async def run(self) -> None:
        """Connects, and again whenever the connection is lost, until cancelled."""
        delay_seconds = FIRST_DELAY_SECONDS
        try:
            while True:
                connection = await self._find()
                if connection is not None:
                    began = time.monotonic()
                    self._note_up(connection)
                    await connection.lost
                    self._note_down(self._why or "the connection is lost")
                    # One that answers only now and then must not be asked all the time.
                    if time.monotonic() - began > STEADY_SECONDS:
                        delay_seconds = FIRST_DELAY_SECONDS
                self.tried.set()
                await asyncio.sleep(delay_seconds)
                delay_seconds = min(delay_seconds * 2, MAX_DELAY_SECONDS)
        finally:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    async def _find(self) -> Connection | None:
        """A connection to the first server that takes writes."""
        reasons = []
        urls = list(self._urls)
        for url in urls:
            try:
                return await self._connect(url)
            except (OSError, TimeoutError, RedisGone, RedisRefused, ValueError) as error:
                reasons.append(f"{url.shown}: {_words(error)}")
                elsewhere = moved_to(error)
                if elsewhere is not None and len(urls) < 2 * len(self._urls) + 1:
                    urls.append(replace(url, host=elsewhere[0], port=elsewhere[1]))
        self._note_down("; ".join(reasons))
        return None

    async def _connect(self, url: RedisUrl) -> Connection:
        """A connection that has just proved that it can write. Raises what `run` catches."""
        async with asyncio.timeout(CONNECT_SECONDS):
            connection = await self._open(url)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                password = url.password or self._password()
                if password:
                    await connection.call(b"AUTH", *([url.user.encode()] if url.user else []), password.encode())
                if url.database:
                    await connection.call(b"SELECT", b"%d" % url.database)
                for script in self._scripts:
                    await connection.call(b"SCRIPT", b"LOAD", script)
            # As fast as every answer will have to be. A write, which a replica refuses, though it changes nothing.
            async with asyncio.timeout(self._timeout_seconds):
                await connection.call(b"DEL", self._probe)
        except BaseException:
            connection.abort()
            raise
        return connection

    def _password(self) -> str:
        """Read at each connection, so that a new one needs no restart."""
        return "" if self._password_file is None else Path(self._password_file).read_text(encoding="utf-8").strip()

    async def _open(self, url: RedisUrl) -> Connection:
        loop = asyncio.get_running_loop()
        if url.path is not None:
            return (await loop.create_unix_connection(Connection, url.path))[1]
        context = ssl.create_default_context() if url.tls else None
        return (await loop.create_connection(Connection, url.host, url.port, ssl=context))[1]

    def _on_late(self, answer: asyncio.Future[Any]) -> None:
        if not answer.done():
            asyncio.get_running_loop().call_later(GRACE_SECONDS, self._too_late, answer)

    def _too_late(self, answer: asyncio.Future[Any]) -> None:
        if answer.done():
            return
        answer.set_exception(RedisGone("no answer in time"))
        self._late += 1
        if self._late >= MAX_LATE:
            self._drop(f"{self._late} answers in a row took more than {self._timeout_seconds * 1000:g} ms")

    def _drop(self, why: str) -> None:
        if self._connection is not None:
            self._why = why
            self._connection.abort()
            self._connection = None

    def _note_up(self, connection: Connection) -> None:
        self._connection = connection
        self._late = 0
        self._why = ""
        if self._down_since is not None:
            logger.warning("Redis answers again after %.1f s", time.monotonic() - self._down_since)
            self._down_since = None
        self.tried.set()
        self._on_up()

    def _note_down(self, why: str) -> None:
        self._connection = None
        if self._down_since is None:
            self._down_since = time.monotonic()
            logger.error("Redis cannot be used: %s", why)


def _words(error: Exception) -> str:
    return "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
