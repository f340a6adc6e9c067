"""Which event loops a test may ask for by `pytest.mark.asyncio(loop_factories=[...])`; others get asyncio's own. And
EngineProcesses that end with their test."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

import pytest
import uvloop

from backends.process import EngineProcess
from tests.backends.contract import running_gguf, running_llama_server
from tests.backends.supervised import (
    TIMING,
    Make,
    fake_argv,
)


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Read by pytest-asyncio for every async test below this folder."""
    factories: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
    marker = item.get_closest_marker("asyncio")
    if marker is not None and "loop_factories" in marker.kwargs:
        factories["uvloop"] = uvloop.new_event_loop
    return factories


@pytest.fixture(scope="session")
def gguf_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Our engine with the demo model, for contract.py."""
    with running_gguf(tmp_path_factory.mktemp("gguf")) as (address, _):
        yield address


@pytest.fixture(scope="session")
def llama_server_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """llama-server with the demo model, for contract.py."""
    with running_llama_server(tmp_path_factory.mktemp("llama-server")) as (address, _):
        yield address


@pytest.fixture
def nothing_is_left_open() -> Iterator[None]:
    """Fails a test that leaks a file descriptor."""
    uvloop.new_event_loop().close()  # the first one opens two for the whole process
    before = len(os.listdir("/proc/self/fd"))
    yield
    assert len(os.listdir("/proc/self/fd")) <= before


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """EngineProcess of a fake engine in the given modes; ended at the end of the test."""
    made: list[EngineProcess] = []

    def build(*modes: str, **options: Any) -> EngineProcess:
        process = EngineProcess("demo", lambda path: fake_argv(path, *modes), **{"timing": TIMING, **options})
        made.append(process)
        return process

    yield build
    for process in made:
        await process.stop()
        assert not process.folder.exists()
