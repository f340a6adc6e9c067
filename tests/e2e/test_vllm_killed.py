"""The real vLLM killed under 64 streams and 200 short calls a second, and then the gateway that has started it again;
figures are in docs/routing.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.benchmarks.bench_kill import CONFIG, kill_under_load
from tests.engine import is_alive, wait_for
from tests.vllm import VllmUnderTest, held_files, running_vllm

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmUnderTest]:
    """A gateway for both tests: the second one ends it."""
    with running_vllm(tmp_path_factory.mktemp("own"), CONFIG) as vllm:
        yield vllm


async def test_vllm_that_is_killed_under_load_costs_what_had_begun_and_nothing_else(own: VllmUnderTest) -> None:
    outcome = await kill_under_load(own, rate=200, seconds=6, streams=64)
    print(outcome.report())
    assert outcome.streams == {"backend_error": 64}, "none of them may look whole"
    assert outcome.statuses == {"200": 1200}
    assert "gguf" in {call.backend for call in outcome.caught}, "vLLM had not begun any of them"
    assert {call.backend for call in outcome.after} == {"gguf"}
    assert own.gateway.in_flight() == 0


def test_a_killed_gateway_leaves_no_files(own: VllmUnderTest) -> None:
    own.wait_ready()
    pids, folder = own.processes(), own.socket.parent
    files = held_files(pids.values())
    assert len([file for file in files if file.name.startswith("psm_")]) >= 2
    assert {file.parent for file in files} == {folder, folder / "rpc", Path("/dev/shm")}
    own.gateway.process.kill()
    wait_for(lambda: not any(map(is_alive, pids.values())))
    wait_for(lambda: not folder.exists() and not any(file.exists() for file in files))
