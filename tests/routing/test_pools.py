"""From settings to upstreams: what bounds each one, and what it is called."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from backends.factory import create_backends
from backends.vllm.environment import Installed
from config.schema import ModelSettings
from routing.adaptive import START
from routing.pools import upstreams_of
from routing.upstream import Upstream
from tests.fakes import FakeBackend

DEMO = {"source": "demo"}
URLS = {"urls": ["http://gpu-0:8000", "http://gpu-1:8000"]}


@pytest.mark.parametrize(
    ("gguf", "limit"),
    [
        ({"source": "demo"}, inf),
        ({"source": "demo", "parallel": 4}, 4),
        ({"source": "demo", "parallel": 4, "max_in_flight": 6}, 6),
        ({"openai": "http://127.0.0.1:8080"}, inf),
        ({"openai": "http://127.0.0.1:8080", "max_in_flight": 3}, 3),
        ({"source": "demo", "max_in_flight": "adaptive"}, START),
    ],
    ids=str,
)
def test_a_gguf_upstream_takes_what_its_engine_computes_at_once(gguf: dict[str, Any], limit: float) -> None:
    model = ModelSettings.model_validate({"name": "m", "gguf": gguf})
    (upstream,) = upstreams_of(model, [FakeBackend("gguf")])
    assert upstream.limit == limit
    assert ("images" in upstream.lacks) is ("source" in gguf)


@pytest.mark.parametrize(
    ("vllm", "limit"),
    [
        (URLS, inf),
        (URLS | {"max_in_flight": 64}, 64),
        ({"source": "demo", "max_sequences": 16}, 16),
        ({"source": "demo", "max_sequences": 16, "max_in_flight": 20}, 20),
    ],
    ids=str,
)
def test_so_does_a_vllm_upstream(vllm: dict[str, Any], limit: float) -> None:
    model = ModelSettings.model_validate({"name": "m", "vllm": vllm})
    (upstream,) = upstreams_of(model, [FakeBackend("vllm")])
    assert (upstream.limit, upstream.lacks) == (limit, frozenset())


@pytest.mark.parametrize(
    ("gguf", "vllm", "device", "on_cores"),
    [
        (DEMO, DEMO, "cpu", [True, True]),
        (DEMO, DEMO, "cuda", [True, False]),
        (DEMO, URLS, "cpu", [True, False, False]),
        ({"openai": "http://127.0.0.1:8080"}, DEMO, "cpu", [False, True]),
    ],
    ids=str,
)
def test_engines_that_are_launched_here_without_a_gpu_compute_on_the_same_cores(
    gguf: dict[str, Any], vllm: dict[str, Any], device: str, on_cores: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backends.vllm.command.installed", lambda _: Installed(device, "0", ""))
    model = ModelSettings.model_validate({"name": "m", "gguf": gguf, "vllm": vllm})
    upstreams = [upstream for one in model.artifacts for upstream in upstreams_of(one, create_backends(one))]
    assert [upstream.shares_cores for upstream in upstreams] == on_cores


def test_replicas_are_called_by_their_addresses_which_outlive_this_process() -> None:
    model = ModelSettings.model_validate({"name": "m", "vllm": URLS, "gguf": {"openai": "http://127.0.0.1:8080"}})
    first, second = (upstreams_of(model, create_backends(model)) for _ in range(2))
    assert [upstream.label for upstream in first] == ["http://127.0.0.1:8080", *URLS["urls"]]
    assert [upstream.seed for upstream in first] == [upstream.seed for upstream in second]
    assert len({upstream.seed for upstream in first}) == 3


def test_a_limit_that_is_found_out_moves_with_the_answers() -> None:
    model = ModelSettings.model_validate({"name": "m", "gguf": {"source": "demo", "max_in_flight": "adaptive"}})
    (upstream,) = upstreams_of(model, [FakeBackend("gguf")])
    _answer(upstream, first_token_seconds=0.1)
    assert upstream.limit > START
    _answer(upstream, first_token_seconds=30.0)
    assert upstream.limit < START


def _answer(upstream: Upstream, first_token_seconds: float) -> None:
    upstream.in_flight = int(upstream.limit)
    upstream.answered(100.0, first_token_seconds + 1, first_token_seconds, 5, upstream.in_flight)
