"""API keys at the Redis that replicas share, over a blocking connection: for the command line, and in a thread.

One document and a number that grows with each change, in one slot of a cluster. Neighbours: ../keystore.py (the other
places for keys), link.py (the limits' connection, which is another matter: docs/decisions/012).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config.document import Document
from config.errors import ConfigError, Problem
from config.redis import RedisSettings, RedisUrl
from config.validate import validate
from gateway.keysfile import KeysFile

if TYPE_CHECKING:
    from redis import Redis

TIMEOUT_SECONDS = 5.0
# Editors that change the keys between reading and writing of another one, before that one gives up.
_TRIES = 20

# Writes only what was made of the newest version.
_SWAP = b"""
if (redis.call('GET', KEYS[2]) or '0') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('INCR', KEYS[2])
return 1
"""


class RedisStore:
    """Keys at Redis; `where` names it without its password. Keeps nothing open."""

    def __init__(self, settings: RedisSettings) -> None:
        self.where = "redis"
        self._settings = settings
        self._document = f"{{{settings.prefix}}}:keys".encode()
        self._version = self._document + b":version"

    def stamp(self) -> object:
        """The number of the last change; what is wrong where Redis cannot be asked."""
        try:
            return self._ask(b"GET", self._version)
        except ConfigError as error:
            return str(error)

    def load(self) -> KeysFile | None:
        """Raises ConfigError."""
        return self._read(self._ask(b"GET", self._document))

    def change(self, edit: Callable[[KeysFile], KeysFile]) -> None:
        """Raises ConfigError, and whatever `edit` does."""
        for _ in range(_TRIES):
            version, document = self._ask(b"MGET", self._version, self._document)
            new = edit(self._read(document) or KeysFile()).model_dump(mode="json", exclude_defaults=True)
            text = json.dumps(new or {"keys": []}).encode()
            if self._ask(b"EVAL", _SWAP, b"2", self._document, self._version, version or b"0", text) == 1:
                return
        raise self._failed("somebody else changes the keys all the time")

    def _read(self, document: bytes | None) -> KeysFile | None:
        if document is None:
            return None
        try:
            data = json.loads(document)
        except ValueError as error:
            raise self._failed(f"what is kept as the keys is no JSON ({error})") from error
        return validate(KeysFile, Document(data=data), self.where)

    def _ask(self, *words: bytes) -> Any:
        """One command over a connection of its own: they are few, and none is kept for somebody to close."""
        from redis.exceptions import RedisError  # noqa: PLC0415 - loaded by those who keep their keys there

        try:
            with contextlib.closing(self._connect()) as client:
                return client.execute_command(*words)  # type: ignore[no-untyped-call]
        except (OSError, RedisError) as error:
            raise self._failed(str(error) or "no answer") from error

    def _connect(self) -> Redis:
        """To the first server that takes writes. Raises what `_ask` catches."""
        from redis.exceptions import MovedError, RedisError  # noqa: PLC0415

        last: Exception = OSError("redis.url names no server")
        urls = list(self._settings.urls)
        for url in urls:
            client = _client(url, url.password or self._password())
            try:
                client.delete(self._document + b":probe")
            except (OSError, RedisError) as error:
                last = error
                client.close()
                if isinstance(error, MovedError) and len(urls) < 2 * len(self._settings.urls) + 1:
                    urls.append(replace(url, host=error.host, port=error.port))
            else:
                return client
        raise last

    def _password(self) -> str:
        file = self._settings.password_file
        return "" if file is None else Path(file).read_text(encoding="utf-8").strip()

    def _failed(self, why: str) -> ConfigError:
        return ConfigError(self.where, (Problem((), f"cannot be used: {why}"),))


def _client(url: RedisUrl, password: str) -> Redis:
    """One connection to one server, opened by the first command."""
    from redis import Redis  # noqa: PLC0415
    from redis.backoff import NoBackoff  # noqa: PLC0415
    from redis.retry import Retry  # noqa: PLC0415

    return Redis(
        host=url.host,
        port=url.port,
        unix_socket_path=url.path,
        db=url.database,
        username=url.user or None,
        password=password or None,
        ssl=url.tls,
        socket_timeout=TIMEOUT_SECONDS,
        socket_connect_timeout=TIMEOUT_SECONDS,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
    )
