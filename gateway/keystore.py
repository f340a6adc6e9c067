"""Where API keys are kept: a YAML file, a SQLite database, or the Redis that replicas share. All of them block.

A store has `where` (for people), `stamp()` (differs when the keys do), `load()` (None where nothing was ever kept)
and `change(edit)`, which is all or nothing beside every other editor. Neighbours: keysfile.py (the file), keyedits.py
(edits), keyswatch.py (follows a store), replicas/keys.py (Redis).
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from config.auth import AuthSettings
from config.document import Document
from config.errors import ConfigError, Problem
from config.redis import RedisSettings
from config.schema import Settings
from config.validate import validate
from gateway.keysfile import KeysFile, editing, load_keys, write_keys
from gateway.replicas.keys import RedisStore

Edit = Callable[[KeysFile], KeysFile]

# How long an editor waits for another one.
BUSY_SECONDS = 10.0


class FileStore:
    """Keys in a YAML file that people may edit."""

    def __init__(self, file: Path) -> None:
        self.where = str(file)
        self._file = file

    def stamp(self) -> object:
        """Differs between two contents of the file, whether it was written or replaced; its error where it is gone."""
        try:
            found = os.stat(self._file)
        except OSError as error:
            return error.errno
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    def load(self) -> KeysFile | None:
        """Raises ConfigError."""
        return load_keys(self._file)

    def change(self, edit: Edit) -> None:
        """Raises ConfigError, OSError and whatever `edit` does."""
        with editing(self._file) as old:
            write_keys(self._file, edit(old))


class DatabaseStore:
    """Keys in a SQLite database, which programs change and nobody parses."""

    def __init__(self, file: Path) -> None:
        self.where = str(file)
        self._file = file

    def stamp(self) -> object:
        """A number that grows with each change; what is wrong where it cannot be read."""
        try:
            with self._opened() as database:
                return _version(database)
        except ConfigError as error:
            return str(error)

    def load(self) -> KeysFile | None:
        """Raises ConfigError."""
        if not self._file.exists():
            return None
        with self._opened() as database:
            return self._read(database)

    def change(self, edit: Edit) -> None:
        """Raises ConfigError, and whatever `edit` does."""
        if not self._file.exists():
            with contextlib.suppress(FileExistsError), self._reporting():
                os.close(os.open(self._file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with self._opened() as database, self._reporting():
            database.execute("BEGIN IMMEDIATE")
            database.execute("CREATE TABLE IF NOT EXISTS keys(name TEXT PRIMARY KEY, entry TEXT NOT NULL)")
            database.execute("CREATE TABLE IF NOT EXISTS version(number INTEGER NOT NULL)")
            entries = edit(self._read(database)).model_dump(mode="json", exclude_defaults=True).get("keys", [])
            number = _version(database) + 1
            database.execute("DELETE FROM keys")
            database.executemany(
                "INSERT INTO keys VALUES (?, ?)", [(entry["name"], json.dumps(entry)) for entry in entries]
            )
            database.execute("DELETE FROM version")
            database.execute("INSERT INTO version VALUES (?)", (number,))
            database.execute("COMMIT")

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with self._reporting():
            database = sqlite3.connect(
                f"file:{self._file}?mode=rw", timeout=BUSY_SECONDS, uri=True, isolation_level=None
            )
            try:
                yield database
            finally:
                database.close()

    @contextlib.contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(self.where, (Problem((), f"cannot be used: {error}"),)) from error

    def _read(self, database: sqlite3.Connection) -> KeysFile:
        if not _has_tables(database):
            return KeysFile()
        rows = database.execute("SELECT entry FROM keys ORDER BY rowid").fetchall()
        return validate(KeysFile, Document(data={"keys": [json.loads(entry) for (entry,) in rows]}), self.where)


def _has_tables(database: sqlite3.Connection) -> bool:
    return database.execute("SELECT 1 FROM sqlite_master WHERE name = 'version'").fetchone() is not None


def _version(database: sqlite3.Connection) -> int:
    found = database.execute("SELECT number FROM version").fetchone() if _has_tables(database) else None
    return 0 if found is None else int(found[0])


KeyStore = FileStore | DatabaseStore | RedisStore


def store_of(settings: Settings) -> KeyStore | None:
    """Where the settings keep their keys; None where they have none."""
    auth = settings.auth
    if not isinstance(auth, AuthSettings):
        return None
    if auth.keys_file is not None:
        return FileStore(Path(auth.keys_file))
    return None if auth.keys_store is None else store_at(auth.keys_store, settings.redis)


def store_at(place: str, redis: RedisSettings) -> KeyStore:
    """The store that `place` names: `redis`, a SQLite database (.db, .sqlite) or a keys file."""
    if place == "redis":
        return RedisStore(redis)
    return DatabaseStore(Path(place)) if place.endswith((".db", ".sqlite", ".sqlite3")) else FileStore(Path(place))
