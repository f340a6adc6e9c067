"""Estimates beside what llama.cpp itself says, and advice that holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.fit import GIB, MIB, Fit, gguf_fit, gguf_needs, gguf_parallel, gib, most
from backends.gguf.demo import DEMO_MODEL_PATH
from backends.gguf.shape import read_shape
from tests.backends.gguf.buffers import buffer_bytes
from tests.backends.gguf.odd_models import write_hybrid, write_latent, write_recurrent, write_wide_heads
from tests.backends.vllm.test_fit import LLAMA_8B as CHECKPOINT_8B
from tests.benchmarks.random_model import Shape, write_random_model

# The same model as a GGUF.
LLAMA_8B = replace(CHECKPOINT_8B, weights="Q4_K", weight_bytes=4_920_000_000)


@pytest.mark.engine
@pytest.mark.parametrize(("slots", "tokens"), [(1, 512), (4, 4096), (16, 1000)])
@pytest.mark.parametrize("name", ["demo", "random"])
def test_estimate_is_within_a_tenth_of_what_llama_cpp_allocates(
    name: str, slots: int, tokens: int, tmp_path: Path
) -> None:
    path = DEMO_MODEL_PATH
    if name == "random":
        path = tmp_path / "random.gguf"
        write_random_model(path, Shape(4, 512, 8, 8, 1376, 32_000, 8192))
    found = buffer_bytes(path, slots, tokens)
    needs = gguf_needs(read_shape(path), tokens, slots)
    assert needs.weight_bytes == pytest.approx(found["model"], rel=0.01)
    assert needs.kv_bytes == pytest.approx(found["KV"], abs=MIB / 100)  # as exact as the log
    # The copy of the logits is no buffer of the log.
    logits = 4 * slots * read_shape(path).vocabulary
    estimate = needs.total_bytes - needs.process_bytes - logits
    assert estimate == pytest.approx(sum(found.values()), rel=0.1)
    assert estimate >= 0.99 * sum(found.values())


@pytest.mark.engine
@pytest.mark.parametrize("write", [write_wide_heads, write_recurrent, write_hybrid, write_latent])
def test_caches_of_odd_models_are_llama_cpps(write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    write(path)
    found = buffer_bytes(path, 4, 512)
    expected = found.get("KV", 0) + found.get("RS", 0)
    assert gguf_needs(read_shape(path), 512, 4).kv_bytes == pytest.approx(expected, abs=MIB / 50)
    assert expected > MIB / 8


def test_known_model_needs_what_is_known_of_it() -> None:
    needs = gguf_needs(LLAMA_8B, 8192, 1)
    assert needs.kv_bytes == GIB
    assert needs.total_bytes == pytest.approx(4.6 * GIB + GIB + 0.3 * GIB, rel=0.05)


@pytest.mark.parametrize(("available_gib", "parallel"), [(4, 1), (6, 2), (7, 2), (8, 4), (16, 8), (32, 16), (1000, 16)])
def test_slots_take_a_quarter_of_the_memory_and_fit_beside_the_weights(available_gib: int, parallel: int) -> None:
    assert gguf_parallel(LLAMA_8B, available_gib * GIB, 4096) == parallel


def test_sizes_nobody_names_are_the_engines() -> None:
    fit = gguf_fit(LLAMA_8B, 16 * GIB, None, None)
    assert (fit.context_tokens, fit.parallel, fit.fits, fit.changes) == (4096, 8, True, ())
    assert gguf_fit(replace(LLAMA_8B, context_tokens=2048), 16 * GIB, None, None).context_tokens == 2048


def test_what_does_not_fit_says_what_would() -> None:
    fit = gguf_fit(LLAMA_8B, 8 * GIB, 32768, 4)
    assert not fit.fits
    assert [change.partition(":")[0] for change in fit.changes] == ["context_tokens"]
    for change in fit.changes:
        setting, _, value = change.partition(": ")
        if setting == "parallel":
            assert gguf_needs(LLAMA_8B, 32768, int(value)).total_bytes <= 8 * GIB
        if setting == "context_tokens":
            assert gguf_needs(LLAMA_8B, int(value), 4).total_bytes <= 8 * GIB
            assert gguf_needs(LLAMA_8B, int(value) + 256, 4).total_bytes > 8 * GIB


def test_weights_that_do_not_fit_want_a_smaller_quantization() -> None:
    assert gguf_fit(LLAMA_8B, 4 * GIB, 2048, None).changes == (
        "a smaller quantization than Q4_K: at most 3.5 GiB of weights",
    )
    assert gguf_fit(LLAMA_8B, 200 * MIB, 2048, None).changes == ("a smaller model",)


@given(limit=st.integers(0, 1000), bound=st.integers(0, 1000))
def test_the_most_is_found(limit: int, bound: int) -> None:
    assert most(lambda number: number <= limit, bound) == min(limit, bound)


def test_sizes_for_people() -> None:
    assert [gib(size) for size in (3 * MIB, GIB // 4, 5 * GIB)] == ["3 MiB", "0.2 GiB", "5.0 GiB"]
    assert Fit(gguf_needs(LLAMA_8B, 256, 1), 0, 256, 1).fits is False
