"""A changed keys file is in force soon; one that cannot be used changes nothing and is reported once."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import httpx
import pytest

from config.errors import ConfigError, Problem
from config.redis import RedisSettings
from config.schema import Settings
from gateway.auth import keys_of
from gateway.keys import hash_of
from gateway.keysfile import KeysFile, load_keys, write_keys
from gateway.keystore import FileStore, KeyStore, store_at
from gateway.keyswatch import follow
from tests.engine import wait_for
from tests.fakes import FakeBackend
from tests.gateway.running import CHAT, body, serving


def keys(*names: str) -> KeysFile:
    return KeysFile.model_validate({"keys": [{"name": name, "hash": hash_of(name)} for name in names]})


class Followed:
    """What `follow` has applied, newest last."""

    def __init__(self) -> None:
        self.applied: asyncio.Queue[list[str]] = asyncio.Queue()
        self.refuse = ""

    def apply(self, found: KeysFile) -> None:
        names = [entry.name for entry in found.keys]
        if self.refuse in names:
            raise ConfigError("keys", (Problem(("keys", 0, "tier"), "there is no tier 'gold'"),))
        self.applied.put_nowait(names)

    async def next(self) -> list[str]:
        async with asyncio.timeout(20):
            return await self.applied.get()


@contextlib.asynccontextmanager
async def following(file: Path) -> AsyncIterator[Followed]:
    followed = Followed()
    task = asyncio.create_task(follow(FileStore(file), followed.apply))
    try:
        yield followed
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_each_change_is_applied_once_however_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    write_keys(file, keys("a"))
    async with following(file) as followed:
        assert await followed.next() == ["a"]
        write_keys(file, keys("a", "b"))
        assert await followed.next() == ["a", "b"]
        file.write_text(json.dumps(keys("c").model_dump(mode="json", exclude_defaults=True)))
        assert await followed.next() == ["c"]
        file.touch()
        file.write_text("keys: []")
        assert await followed.next() == []
        assert followed.applied.empty()


async def test_bad_file_changes_nothing_and_a_good_one_heals_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys.yaml"
    write_keys(file, keys("a"))
    async with following(file) as followed:
        assert await followed.next() == ["a"]
        followed.refuse = "gold"
        for text in ("keys: [{name: ", "keys: [{name: x}]", None, "refused"):
            caplog.clear()
            if text is None:
                file.unlink()
            elif text == "refused":
                write_keys(file, keys("gold"))
            else:
                file.write_text(text)
            async with asyncio.timeout(20):
                while not caplog.records:  # noqa: ASYNC110 - a log has no event
                    await asyncio.sleep(0)
            assert "stay as they were" in caplog.records[0].message
        assert followed.applied.empty()
        write_keys(file, keys("b"))
        assert await followed.next() == ["b"]
        assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1


async def test_gateway_refuses_a_revoked_key_and_admits_a_new_one(tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    write_keys(file, keys("alice"))
    async with serving(FakeBackend(), edge={"auth": {"keys_file": str(file)}}) as gateway:

        async def status(key: str) -> int:
            answer = await gateway.client.post(CHAT, json=body(), headers={"authorization": f"Bearer {key}"})
            return answer.status_code

        assert (await status("alice"), await status("bob")) == (200, 401)
        write_keys(file, keys("bob"))
        async with asyncio.timeout(20):
            while await status("alice") == 200:
                pass
        assert (await status("alice"), await status("bob")) == (401, 200)
        assert load_keys(file) == keys("bob")


async def test_nobody_waits_for_a_reload_that_waits_for_the_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys.db"
    store_at(str(file), RedisSettings()).change(lambda _: keys("alice"))
    async with serving(FakeBackend(), edge={"auth": {"keys_store": str(file)}}) as gateway:
        with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as writer:
            writer.execute("BEGIN EXCLUSIVE")
            reload = asyncio.create_task(gateway.reload(server={"port": 0, "idle_timeout_seconds": 9.0}))
            for _ in range(20):
                answer = await gateway.client.post(CHAT, json=body(), headers={"authorization": "Bearer alice"})
                assert answer.status_code == 200
            assert not reload.done()
            writer.execute("ROLLBACK")
        await reload
        assert gateway.app.gateway.settings.server.idle_timeout_seconds == 9.0


async def test_key_that_is_revoked_while_a_reload_reads_stays_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "keys.yaml"
    write_keys(file, keys("alice", "bob"))
    async with serving(FakeBackend(), edge={"auth": {"keys_file": str(file)}}) as gateway:

        def status(key: str) -> int:
            models = f"{gateway.client.base_url}/v1/models"
            return httpx.get(models, headers={"authorization": f"Bearer {key}"}, timeout=20).status_code

        def read_too_early(settings: Settings, _: KeysFile | None) -> KeysFile | None:
            found = keys_of(settings)
            write_keys(file, keys("bob"))
            wait_for(lambda: status("alice") == 401)
            return found

        monkeypatch.setattr("gateway.gateway.keys_of", read_too_early)
        await gateway.reload()
        await asyncio.to_thread(wait_for, lambda: status("alice") == 401)
        assert await asyncio.to_thread(status, "bob") == 200


async def test_a_reload_keeps_the_keys_of_a_store_that_has_lost_them(tmp_path: Path) -> None:
    file = tmp_path / "keys.db"
    store_at(str(file), RedisSettings()).change(lambda _: keys("alice"))
    async with serving(FakeBackend(), edge={"auth": {"keys_store": str(file)}}) as gateway:
        file.unlink()
        for _ in range(2):
            await gateway.reload()
            answer = await gateway.client.post(CHAT, json=body(), headers={"authorization": "Bearer alice"})
            assert answer.status_code == 200
        await gateway.reload(auth={"keys_store": str(tmp_path / "other.db")})
        answer = await gateway.client.post(CHAT, json=body(), headers={"authorization": "Bearer alice"})
        assert answer.status_code == 401, "another store has other keys"


async def test_a_reading_that_fails_is_done_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "keys.yaml"
    write_keys(file, keys("a", "b"))
    real = FileStore(file)
    failures = 0

    class Failing:
        """Has no descriptor left for the first readings of a change."""

        where = real.where

        def stamp(self) -> object:
            return real.stamp()

        def load(self) -> KeysFile | None:
            nonlocal failures
            if failures:
                failures -= 1
                raise ConfigError(str(file), (Problem((), "Too many open files"),))
            return real.load()

    followed = Followed()
    task = asyncio.create_task(follow(cast(KeyStore, Failing()), followed.apply))
    assert await followed.next() == ["a", "b"]
    failures = 2
    write_keys(file, keys("a"))
    assert await followed.next() == ["a"], "b was revoked"
    assert caplog.text.count("Too many open files") == 1
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_what_is_in_force_is_not_applied_again(tmp_path: Path) -> None:
    """Whoever has been let in would have to be let in anew."""
    file = tmp_path / "keys.yaml"
    write_keys(file, keys("a"))
    loop, read, followed = asyncio.get_running_loop(), asyncio.Event(), Followed()

    class Store(FileStore):
        def load(self) -> KeysFile | None:
            found = super().load()
            loop.call_soon_threadsafe(read.set)
            return found

    task = asyncio.create_task(follow(Store(file), followed.apply, keys("a")))
    async with asyncio.timeout(20):
        await read.wait()
    write_keys(file, keys("a", "b"))
    assert await followed.next() == ["a", "b"]
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
