"""Three places for keys, one behaviour; and that everybody who changes them at once is heard."""

from __future__ import annotations

import functools
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from config.errors import ConfigError
from config.redis import RedisSettings
from gateway import keyedits
from gateway.keyedits import KeyTaken, NoSuchKey
from gateway.keys import hash_of
from gateway.keystore import DatabaseStore, FileStore, KeyStore, store_at
from gateway.replicas.keys import RedisStore
from tests.redis_server import EDITIONS, REDIS_7, Edition, RedisServer, if_to_be_had, running_redis

Make = Callable[[], KeyStore]


@pytest.fixture(scope="module")
def server_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Edition], RedisServer]]:
    with ExitStack() as stack:

        @functools.cache
        def start(edition: Edition) -> RedisServer:
            folder = tmp_path_factory.mktemp("redis")
            return stack.enter_context(running_redis(folder, edition=if_to_be_had(edition)))

        yield start


@pytest.fixture(params=["file", "database", *(edition.name for edition in EDITIONS)])
def make(request: pytest.FixtureRequest, tmp_path: Path, server_of: Callable[[Edition], RedisServer]) -> Make:
    """Makes another store at the same place, as another process would have."""
    if request.param == "file":
        return lambda: FileStore(tmp_path / "keys.yaml")
    if request.param == "database":
        return lambda: DatabaseStore(tmp_path / "keys.db")
    server = server_of(next(edition for edition in EDITIONS if edition.name == request.param))
    server.command("FLUSHALL")
    return lambda: RedisStore(RedisSettings(url=server.url))


def entry(name: str, **fields: object) -> dict[str, object]:
    return {"name": name, "hash": hash_of(name), **fields}


def names(store: KeyStore) -> list[str]:
    found = store.load()
    return [] if found is None else [key.name for key in found.keys]


def test_what_one_changes_others_see(make: Make) -> None:
    store, other = make(), make()
    store.change(keyedits.add(entry("a", tier="gold", limits={"concurrent": 3}, models=["m"]), "x", 0.0))
    before = other.stamp()
    assert before == make().stamp()
    store.change(keyedits.add(entry("b", addresses=["10.0.0.0/8"], surfaces=["operators"]), "x", 0.0))
    assert other.stamp() != before
    assert names(other) == ["a", "b"]
    loaded = other.load()
    assert loaded is not None
    assert (loaded.keys[0].tier, loaded.keys[0].limits.concurrent, loaded.keys[0].models) == ("gold", 3, ("m",))
    other.change(keyedits.rotate("a", hash_of("new"), "x"))
    assert [key.hash for key in (store.load() or loaded).keys] == [hash_of("new"), hash_of("b")]
    other.change(keyedits.revoke("b", "x"))
    assert names(store) == ["a"]
    store.change(keyedits.revoke("a", "x"))
    assert names(other) == []


def test_edit_that_fails_changes_nothing(make: Make) -> None:
    store = make()
    store.change(keyedits.add(entry("a"), "x", 0.0))
    before = store.stamp()
    for edit, error in (
        (keyedits.add(entry("a"), "x", 0.0), KeyTaken),
        (keyedits.add(entry("a b"), "x", 0.0), ConfigError),
        (keyedits.add({**entry("b"), "hash": hash_of("a")}, "x", 0.0), ConfigError),
        (keyedits.revoke("b", "x"), NoSuchKey),
        (keyedits.rotate("b", hash_of("b"), "x"), NoSuchKey),
    ):
        with pytest.raises(error):
            store.change(edit)
    assert (make().stamp(), names(store)) == (before, ["a"])


def test_everybody_who_changes_keys_at_once_is_heard(make: Make) -> None:
    make().change(keyedits.add(entry("first"), "x", 0.0))

    def add(number: int) -> None:
        store = make()
        for index in range(4):
            store.change(keyedits.add(entry(f"k{number}-{index}"), "x", 0.0))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(names(make())) == ["first", *(f"k{number}-{index}" for number in range(4) for index in range(4))]


def test_database_is_its_owners_alone_and_starts_empty(tmp_path: Path) -> None:
    file = tmp_path / "keys.db"
    store = store_at(str(file), RedisSettings())
    assert isinstance(store, DatabaseStore)
    assert store.load() is None
    store.change(keyedits.add(entry("a"), "x", 0.0))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"keys: []", b"SQLite format 3\0" + b"x" * 5000], ids=["text", "broken"])
def test_database_that_is_none_is_one_error(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "keys.db"
    file.write_bytes(content)
    store = DatabaseStore(file)
    with pytest.raises(ConfigError, match="cannot be used"):
        store.load()
    with pytest.raises(ConfigError, match="cannot be used"):
        store.change(keyedits.add(entry("a"), "x", 0.0))
    assert file.read_bytes() == content


def test_redis_that_is_gone_is_one_error_without_its_password() -> None:
    store = RedisStore(RedisSettings(url="redis://:canary@127.0.0.1:1"))
    with pytest.raises(ConfigError, match="redis: cannot be used") as caught:
        store.load()
    assert "canary" not in str(caught.value)
    assert "cannot be used" in str(store.stamp())


def test_redis_is_asked_again_after_a_restart(tmp_path: Path) -> None:
    with running_redis(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always") as server:
        store = RedisStore(RedisSettings(url=server.url))
        store.change(keyedits.add(entry("a"), "x", 0.0))
        server.stop()
        assert "cannot be used" in str(store.stamp())
        server.start()
        assert names(store) == ["a"]


def test_keys_of_somebody_elses_making_are_one_error(server_of: Callable[[Edition], RedisServer]) -> None:
    redis = server_of(REDIS_7)
    redis.command("SET", "{upshift}:keys", "no json")
    with pytest.raises(ConfigError, match="no JSON"):
        RedisStore(RedisSettings(url=redis.url)).load()
