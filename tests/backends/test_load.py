"""Pages of metrics as the three engines write them, and what is understood."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.load import EngineCounts, EngineLoad, parse_load

VLLM = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="meta/Llama {3}"} 3.0
vllm:num_requests_running{engine="1",model_name="meta/Llama {3}"} 2.0
vllm:num_requests_waiting{engine="0",model_name="meta/Llama {3}"} 1.0
vllm:num_requests_waiting{engine="1",model_name="meta/Llama {3}"} 0.0
vllm:num_requests_waiting_by_reason{engine="0",model_name="m",reason="capacity"} 100.0
vllm:kv_cache_usage_perc{engine="0",model_name="meta/Llama {3}"} 0.5
vllm:kv_cache_usage_perc{engine="1",model_name="meta/Llama {3}"} 0.25
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 1.5e+06
vllm:prefix_cache_queries_created{engine="0",model_name="m"} 1.7e+09
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 1000.0
vllm:external_prefix_cache_hits_total{engine="0",model_name="m"} 5.0
vllm:num_preemptions_total{engine="0",model_name="m"} 7.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.001",model_name="m"} 0.0
"""
OURS = b"""\
upshift_engine_running 2.0
upshift_engine_waiting 5.0
upshift_engine_kv_cache_usage_ratio 0.125
upshift_engine_prompt_tokens_total 100.0
upshift_engine_prefix_cache_hits_total 40.0
"""
LLAMA_SERVER = b"""\
# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed.
llamacpp:prompt_tokens_total 60
llamacpp:prompt_tokens_cached_total 40
llamacpp:requests_processing 1
llamacpp:requests_deferred 2
"""


@pytest.mark.parametrize(
    ("page", "load"),
    [
        pytest.param(VLLM, EngineLoad(5, 1, 0.375, 7.0, 1_500_000, 1000, 7), id="vllm-two-engines"),
        pytest.param(OURS, EngineLoad(2, 5, 0.125, 7.0, 100, 40, None), id="ours"),
        pytest.param(LLAMA_SERVER, EngineLoad(1, 2, None, 7.0, 100, 40, None), id="llama-server"),
        pytest.param(b"vllm:num_requests_running 1 1700000000\r\n", EngineLoad(1, 0, None, 7.0), id="with-time"),
        pytest.param(b"upshift_engine_running 1\nupshift_engine_waiting NaN\n", EngineLoad(1, 0, None, 7.0), id="nan"),
        pytest.param(b"llamacpp:requests_processing 1e400\n", None, id="infinite"),
        pytest.param(b"vllm:num_requests_running{engine=\n", None, id="broken"),
        pytest.param(b"not_vllm:num_requests_running 1\n", None, id="other-name"),
        pytest.param(b"", None, id="nothing"),
    ],
)
def test_page_is_understood(page: bytes, load: EngineLoad | None) -> None:
    assert parse_load(page, 7.0) == load


@given(st.binary(max_size=400))
def test_no_page_is_too_strange(page: bytes) -> None:
    parse_load(page, 0.0)
    parse_load(b"vllm:num_requests_running " + page, 0.0)


def _looked(hits: int | None) -> EngineLoad:
    return EngineLoad(0, 0, None, 0.0, hits, hits, hits)


def test_counts_begin_with_the_first_look_and_survive_a_restart_of_the_engine() -> None:
    counts = EngineCounts()
    looks = [None, _looked(100), _looked(130), _looked(5), _looked(None), _looked(7), _looked(9)]
    for before, now in itertools.pairwise(looks):
        assert now is not None
        counts.add(before, now)
    assert counts == EngineCounts(30 + 5 + 2, 30 + 5 + 2, 30 + 5 + 2)
