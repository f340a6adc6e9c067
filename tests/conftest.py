"""Fixtures of all tests: a tiny random model, and the real engine serving it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from backends.vllm.environment import default_folder, installed
from tests.benchmarks.random_model import SHAPES, write_random_model
from tests.canary import Watch
from tests.engine import EngineUnderTest, running_engine
from tests.vllm import VllmUnderTest, running_vllm

# How long an example takes is the machine's affair: no test here is about time.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """No run leaves a secret behind. As in the gateway's own log, httpx tells of no addresses: here a test's client
    would."""
    config.pluginmanager.register(Watch())
    logging.getLogger("httpx").setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF of 170 KB with random weights: real code paths, nonsense answers."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    write_random_model(path, SHAPES["tiny"])
    return path


@pytest.fixture(scope="session")
def engine(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineUnderTest]:
    """One engine of 4 slots x 2,048 tokens for every test that leaves it as it was."""
    with running_engine(
        tiny_model, tmp_path_factory.mktemp("engine"), "--parallel", "4", "--max-waiting", "8", "--name", "alias"
    ) as engine:
        yield engine


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without vLLM its tests are skipped, and say so; `make test` tries to install it."""
    if installed(default_folder()) is None:
        skip = pytest.mark.skip(reason="vLLM is not installed; `make vllm` installs it or says why not")
        for item in items:
            if item.get_closest_marker("vllm") is not None:
                item.add_marker(skip)


@pytest.fixture(scope="session")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmUnderTest]:
    """One gateway with vLLM and GGUF behind the demo model for the whole run: a start takes a minute or more."""
    with running_vllm(tmp_path_factory.mktemp("vllm")) as vllm:
        yield vllm
