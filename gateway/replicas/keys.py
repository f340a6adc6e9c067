"""API keys at the Redis that replicas share, over a blocking connection: for the command line, and in a thread.

One document and a number that grows with each change, in one slot of a cluster. Neighbours: ../keystore.py (the other
places for keys), wire.py (the protocol).
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from config.document import Document
from config.errors import ConfigError, Problem
from config.redis import RedisSettings, RedisUrl
from config.validate import validate
from gateway.keysfile import KeysFile
from gateway.replicas.wire import Incomplete, RedisRefused, decode, encode, moved_to

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
        try:
            with contextlib.closing(self._connect()) as connection:
                return _exchange(connection, words)
        except (OSError, RedisRefused, ValueError, EOFError) as error:
            raise self._failed(str(error) or "no answer") from error

    def _connect(self) -> socket.socket:
        """To the first server that takes writes. Raises what `_ask` catches."""
        last: Exception = OSError("redis.url names no server")
        urls = list(self._settings.urls)
        for url in urls:
            connection = None
            try:
                connection = _open(url)
                password = url.password or self._password()
                if password:
                    user = [url.user.encode()] if url.user else []
                    _exchange(connection, (b"AUTH", *user, password.encode()))
                if url.database:
                    _exchange(connection, (b"SELECT", b"%d" % url.database))
                _exchange(connection, (b"DEL", self._document + b":probe"))
            except (OSError, RedisRefused, ValueError, EOFError) as error:
                last = error
                elsewhere = moved_to(error)
                if elsewhere is not None and len(urls) < 2 * len(self._settings.urls) + 1:
                    urls.append(replace(url, host=elsewhere[0], port=elsewhere[1]))
                if connection is not None:
                    connection.close()
            else:
                return connection
        raise last

    def _password(self) -> str:
        file = self._settings.password_file
        return "" if file is None else Path(file).read_text(encoding="utf-8").strip()

    def _failed(self, why: str) -> ConfigError:
        return ConfigError(self.where, (Problem((), f"cannot be used: {why}"),))


def _open(url: RedisUrl) -> socket.socket:
    if url.path is not None:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(TIMEOUT_SECONDS)
        connection.connect(url.path)
        return connection
    connection = socket.create_connection((url.host, url.port), TIMEOUT_SECONDS)
    return ssl.create_default_context().wrap_socket(connection, server_hostname=url.host) if url.tls else connection


def _exchange(connection: socket.socket, words: tuple[bytes, ...]) -> Any:
    """One command and its answer. Raises RedisRefused, OSError, EOFError and ValueError."""
    connection.sendall(encode(words))
    data = b""
    while True:
        more = connection.recv(65536)
        if not more:
            raise EOFError("the connection is lost")
        data += more
        try:
            answer, _ = decode(data, 0)
        except Incomplete:
            continue
        if isinstance(answer, RedisRefused):
            raise answer
        return answer
