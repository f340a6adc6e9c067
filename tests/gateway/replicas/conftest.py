"""Every server there is to count at, one for all tests that leave it running, empty for each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.redis_server import EDITIONS, Edition, RedisServer, if_to_be_had, running_redis


@pytest.fixture(scope="session", params=EDITIONS, ids=lambda edition: edition.name)
def edition(request: pytest.FixtureRequest) -> Edition | None:
    """Each in turn; None is any one."""
    return if_to_be_had(request.param)


@pytest.fixture(scope="session")
def _server(tmp_path_factory: pytest.TempPathFactory, edition: Edition | None) -> Iterator[RedisServer]:
    with running_redis(tmp_path_factory.mktemp("redis"), edition=edition) as server:
        yield server


@pytest.fixture
def redis(_server: RedisServer) -> RedisServer:
    """Empty, without limits on its memory, not paused."""
    _server.command("FLUSHALL")
    return _server


@pytest.fixture
def own_redis(tmp_path: Path, edition: Edition | None) -> Iterator[RedisServer]:
    """To be stopped, paused and started again; remembers everything that it has answered."""
    options = ("--appendonly", "yes", "--appendfsync", "always")
    with running_redis(tmp_path / "redis", *options, edition=edition) as server:
        yield server
