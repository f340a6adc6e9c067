"""The real vLLM killed under 64 streams and 200 short calls a second; figures are in docs/routing.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks.bench_kill import CONFIG, kill_under_load
from tests.vllm import running_vllm


@pytest.mark.vllm
async def test_vllm_that_is_killed_under_load_costs_what_had_begun_and_nothing_else(tmp_path: Path) -> None:
    with running_vllm(tmp_path, CONFIG) as vllm:
        outcome = await kill_under_load(vllm, rate=200, seconds=6, streams=64)
        print(outcome.report())
        assert outcome.streams == {"backend_error": 64}, "none of them may look whole"
        assert outcome.statuses == {"200": 1200}
        assert "gguf" in {call.backend for call in outcome.caught}, "vLLM had not begun any of them"
        assert {call.backend for call in outcome.after} == {"gguf"}
        assert vllm.gateway.in_flight() == 0
