"""One real Redis for all tests that leave it running, empty for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.redis_server import RedisServer, running_redis


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis(_server: RedisServer) -> RedisServer:
    """Empty, without limits on its memory, not paused."""
    _server.command("FLUSHALL")
    return _server


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    """To be stopped, paused and started again; remembers everything that it has answered."""
    with running_redis(tmp_path / "redis", "--appendonly", "yes", "--appendfsync", "always") as server:
        yield server
