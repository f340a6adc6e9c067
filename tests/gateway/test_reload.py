"""When a configuration is read again, and that one that cannot be used changes nothing."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from config.errors import ConfigError, Problem
from config.load import Loaded, load
from config.schema import Settings
from gateway.ratelimit_store import StoreFull
from gateway.reload import Reloader, Source

PATIENCE_SECONDS = 20


class Applied:
    """What reached the gateway, in order."""

    def __init__(self) -> None:
        self.settings: asyncio.Queue[Settings] = asyncio.Queue()
        self.refusal: Exception | None = None

    async def __call__(self, settings: Settings) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.settings.put_nowait(settings)

    async def next(self) -> Settings:
        async with asyncio.timeout(PATIENCE_SECONDS):
            return await self.settings.get()


@asynccontextmanager
async def watching(file: Path) -> AsyncIterator[tuple[Reloader, Applied]]:
    def read() -> Loaded:
        return load(file, environ={})

    applied = Applied()
    reloader = Reloader(Source(read, read()), applied)
    task = asyncio.create_task(reloader.run())
    try:
        yield reloader, applied
    finally:
        task.cancel()
        await asyncio.wait({task})


def write(file: Path, text: str) -> None:
    """As editors do: a reader sees the old file or the new one."""
    other = file.with_suffix(".new")
    other.write_text(text)
    os.replace(other, file)


def overwrite(file: Path, text: str) -> None:
    """As others do: a reader may see nothing, or the beginning."""
    file.write_text(text)


async def logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while text not in caplog.text:  # noqa: ASYNC110 - a log tells nobody
            await asyncio.sleep(0.01)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "upshift.yaml"
    write(path, "server: {idle_timeout_seconds: 1}\n")
    return path


async def test_a_changed_file_is_applied(file: Path) -> None:
    async with watching(file) as (_, applied):
        for seconds in (2, 3):
            write(file, f"server: {{idle_timeout_seconds: {seconds}}}\n")
            assert (await applied.next()).server.idle_timeout_seconds == seconds
        assert applied.settings.empty()


async def test_a_file_that_is_being_written_is_not_read_until_it_is_whole(file: Path) -> None:
    async with watching(file) as (_, applied):
        # Some looks long; a loop that stands still holds up the looks as well.
        for number in range(40):
            overwrite(file, "models: []\n" if number % 2 else "")
            await asyncio.sleep(0.02)
        assert applied.settings.empty()
        overwrite(file, "server: {idle_timeout_seconds: 7}\n")
        assert (await applied.next()).server.idle_timeout_seconds == 7


async def test_a_signal_reads_again_what_has_not_changed(file: Path) -> None:
    async with watching(file) as (reloader, applied):
        reloader.ask()
        assert (await applied.next()).server.idle_timeout_seconds == 1


@pytest.mark.parametrize("refusal", [ConfigError("keys", (Problem((), "no good"),)), StoreFull("no good")], ids=repr)
async def test_settings_that_cannot_be_applied_are_reported_and_the_next_ones_applied(
    file: Path, caplog: pytest.LogCaptureFixture, refusal: Exception
) -> None:
    async with watching(file) as (reloader, applied):
        applied.refusal = refusal
        reloader.ask()
        await logged(caplog, "no good")
        applied.refusal = None
        reloader.ask()
        assert (await applied.next()).server.idle_timeout_seconds == 1


async def test_a_file_that_cannot_be_used_is_reported_and_the_next_one_applied(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="upshift")
    async with watching(file) as (_, applied):
        write(file, "server: {nonsense: 1}\n")
        await logged(caplog, "nonsense")
        assert "the configuration stays as it was" in caplog.text
        assert applied.settings.empty()
        write(file, "server: {idle_timeout_seconds: 4}\n")
        assert (await applied.next()).server.idle_timeout_seconds == 4


async def test_what_takes_a_restart_is_named(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with watching(file) as (_, applied):
        write(file, "server: {port: 9999}\n")
        await applied.next()
        await logged(caplog, "server.port has changed; that takes a restart")
