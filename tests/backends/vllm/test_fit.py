"""Known models on known GPUs, and advice that holds."""

from __future__ import annotations

from dataclasses import replace

import pytest

from backends.fit import GIB
from backends.gpu import Gpu, Gpus
from backends.hardware import Hardware
from backends.shape import Layer, ModelShape
from backends.vllm.fit import gpus_for, kv_bytes, usable_gpus, vllm_fit
from config.vllm import VllmSettings
from tests.backends.machines import MACHINES

LLAMA_8B = ModelShape(
    architecture="llama",
    weights="bfloat16",
    weight_bytes=16_060_000_000,
    layers=(Layer(kv_elements=2048, kv_heads=8),) * 32,
    width=4096,
    feed_forward=14336,
    heads=32,
    vocabulary=128_256,
    context_tokens=131_072,
)
LLAMA_70B = replace(
    LLAMA_8B, weight_bytes=141_100_000_000, layers=LLAMA_8B.layers[:1] * 80, width=8192, feed_forward=28672, heads=64
)
AUTO = VllmSettings(source="/m")


@pytest.mark.parametrize(
    ("model", "machine", "gpus", "fits"),
    [
        (LLAMA_8B, "1xL40S", 1, True),
        (LLAMA_8B, "2xA100", 1, True),
        (LLAMA_8B, "8xH100", 1, True),
        (LLAMA_70B, "1xL40S", 1, False),
        (LLAMA_70B, "2xA100", 2, False),
        (LLAMA_70B, "8xH100", 4, True),
    ],
    ids=["8B-L40S", "8B-A100", "8B-H100", "70B-L40S", "70B-A100", "70B-H100"],
)
def test_the_fewest_gpus_on_which_a_model_fits_with_room_to_batch(
    model: ModelShape, machine: str, gpus: int, fits: bool
) -> None:
    fit = vllm_fit(model, AUTO, MACHINES[machine], 32768)
    assert (fit.gpus, fit.fits) == (gpus, fits)
    assert bool(fit.changes) != fits


def test_more_gpus_than_fit_are_for_room_that_may_be_used() -> None:
    few = VllmSettings(source="/m", max_sequences=2)
    assert vllm_fit(LLAMA_70B, few, MACHINES["8xH100"], 4096).gpus == 2
    assert vllm_fit(LLAMA_70B, AUTO, MACHINES["8xH100"], 4096).gpus == 4


def test_70b_on_two_a100_fits_with_a_shorter_context_or_smaller_weights() -> None:
    fit = vllm_fit(LLAMA_70B, AUTO, MACHINES["2xA100"], 131_072)
    context, more, fp8, smaller = fit.changes
    tokens = int(context.removeprefix("context_tokens: "))
    assert vllm_fit(LLAMA_70B, AUTO, MACHINES["2xA100"], tokens).fits
    assert not vllm_fit(LLAMA_70B, AUTO, MACHINES["2xA100"], tokens + 64).fits
    assert more == "4 GPUs of this kind"
    assert fp8 == "quantization: fp8_per_tensor"
    assert smaller.startswith("an AWQ or GPTQ checkpoint of 4 bits or a smaller checkpoint: at most ")


def test_a_setting_that_is_too_small_is_what_changes() -> None:
    one = VllmSettings(source="/m", tensor_parallel=1)
    assert "tensor_parallel: 2" in vllm_fit(LLAMA_70B, one, MACHINES["8xH100"], 8192).changes
    little = VllmSettings(source="/m", kv_cache_bytes=GIB)
    fit = vllm_fit(LLAMA_8B, little, MACHINES["1xL40S"], 32768)
    assert not fit.fits
    assert f"kv_cache_bytes: {4 * GIB}" in fit.changes
    many = VllmSettings(source="/m", tensor_parallel=8)
    assert vllm_fit(LLAMA_8B, many, MACHINES["2xA100"], 8192).changes == ("8 GPUs: there are 2",)


@pytest.mark.parametrize("machine", ["1xL40S", "2-cores"])
def test_a_cache_that_is_too_large_is_what_changes(machine: str) -> None:
    model = replace(LLAMA_8B, weight_bytes=4 * GIB)
    fit = vllm_fit(model, VllmSettings(source="/m", kv_cache_bytes=1024 * GIB), MACHINES[machine], 8192)
    assert not fit.fits
    (change,) = [change for change in fit.changes if change.startswith("kv_cache_bytes: ")]
    for more, fits in ((0, True), (2**20, False)):
        size = int(change.removeprefix("kv_cache_bytes: ")) + more
        smaller = VllmSettings(source="/m", kv_cache_bytes=size)
        assert vllm_fit(model, smaller, MACHINES[machine], 8192).fits == fits


def test_without_a_length_it_is_as_much_as_fits() -> None:
    assert vllm_fit(LLAMA_8B, AUTO, MACHINES["8xH100"], None).context_tokens == 131_072
    small = vllm_fit(LLAMA_8B, VllmSettings(source="/m", memory_share=0.5), MACHINES["1xL40S"], None)
    assert small.fits
    assert 16_384 < small.context_tokens < 65_536


def test_room_is_counted_in_whole_conversations() -> None:
    fit = vllm_fit(LLAMA_8B, AUTO, MACHINES["1xL40S"], 8192)
    room = 0.92 * 46068 * 2**20 - fit.needs.total_bytes + fit.needs.kv_bytes
    assert fit.parallel == int(room // GIB)
    # What is known of activations and graphs at vLLM's defaults: 1.5 to 3 GiB.
    assert 1.5 * GIB < fit.needs.scratch_bytes + fit.needs.process_bytes < 3 * GIB
    assert vllm_fit(LLAMA_8B, VllmSettings(source="/m", max_sequences=4), MACHINES["1xL40S"], 8192).parallel == 4


def test_data_parallel_counts_whole_copies() -> None:
    two = VllmSettings(source="/m", data_parallel=2)
    fit = vllm_fit(LLAMA_8B, two, MACHINES["2xA100"], 8192)
    assert (fit.gpus, fit.fits) == (2, True)
    assert not vllm_fit(LLAMA_8B, two, MACHINES["1xL40S"], 8192).fits


def test_heads_are_cut_and_latent_attention_is_not() -> None:
    assert [kv_bytes(LLAMA_8B, 8192, gpus) for gpus in (1, 4, 16)] == [GIB, GIB // 4, GIB // 8]
    mla = replace(LLAMA_8B, layers=(Layer(kv_elements=576),) * 61)
    assert kv_bytes(mla, 1000, 8) == 61 * 576 * 2 * 1000
    windows = (Layer(1024, 4, window=512), Layer(1024, 4), Layer(state_elements=100))
    assert kv_bytes(replace(LLAMA_8B, layers=windows), 4096, 1) == 2 * 1024 * (512 + 4096) + 400


def test_on_the_cpu_the_cache_is_a_quarter_of_the_memory_and_at_most_four_gib() -> None:
    small = replace(LLAMA_8B, weight_bytes=GIB)
    machine = MACHINES["2-cores"]
    fit = vllm_fit(small, AUTO, machine, None)
    assert (fit.gpus, fit.fits, fit.needs.kv_bytes, fit.context_tokens) == (0, True, 4 * GIB, 32768)
    fit = vllm_fit(small, AUTO, machine, 65536)
    assert fit.changes == (f"kv_cache_bytes: {8 * GIB}", "context_tokens: 32768")
    assert not vllm_fit(LLAMA_70B, AUTO, machine, 2048).fits


def _machine(*gpus: Gpu) -> Hardware:
    return Hardware(1, 1, 64 * GIB, 60 * GIB, (), gpus=Gpus(gpus))


def test_only_gpus_that_vllm_runs_on_count_and_all_of_one_kind() -> None:
    old = Gpu("nvidia", "Tesla P100", "GPU-0", 16 * GIB, 16 * GIB, "6.0")
    small = Gpu("nvidia", "RTX 4090", "GPU-1", 24 * GIB, 24 * GIB, "8.9")
    large = Gpu("nvidia", "H100", "GPU-2", 80 * GIB, 80 * GIB, "9.0")
    amd, radeon = (Gpu("amd", name, name, 8 * GIB, 8 * GIB, name) for name in ("gfx942", "gfx803"))
    assert usable_gpus((old, small, large, small)) == (large,)
    assert usable_gpus((old,)) == ()
    assert usable_gpus((radeon, amd)) == (amd,)
    assert usable_gpus((Gpu("nvidia", "B200", "", 180 * GIB, 0, "10.0"),))


def test_a_gpu_that_shares_the_memory_has_as_much_as_the_machine() -> None:
    spark = Gpu("nvidia", "GB10", "GPU-0", 0, 0, "12.1")
    fit = vllm_fit(LLAMA_8B, AUTO, _machine(spark), 8192)
    assert (fit.gpus, fit.fits) == (1, True)
    assert fit.available_bytes == int(0.92 * 64 * GIB)


def test_what_settings_make_smaller_counts() -> None:
    plain = vllm_fit(LLAMA_8B, AUTO, MACHINES["1xL40S"], 8192).needs
    small = VllmSettings(source="/m", quantization="fp8", args={"kv-cache-dtype": "fp8_e4m3"})
    needs = vllm_fit(LLAMA_8B, small, MACHINES["1xL40S"], 8192).needs
    # RedHatAI/Meta-Llama-3.1-8B-Instruct-FP8, whose embeddings and output layer are BF16 too, has 9.08 GB.
    assert (round(needs.weight_bytes / 1e9, 2), needs.kv_bytes) == (9.08, plain.kv_bytes // 2)
    tied = vllm_fit(replace(LLAMA_8B, tied=True), small, MACHINES["1xL40S"], 8192).needs
    assert needs.weight_bytes - tied.weight_bytes == LLAMA_8B.vocabulary * LLAMA_8B.width
    quantized = replace(LLAMA_8B, weights="awq")
    assert vllm_fit(quantized, small, MACHINES["1xL40S"], 8192).needs.weight_bytes == plain.weight_bytes


SIZES = {
    "RTX 4080": ("8.9", 16),
    "T4": ("7.5", 16),
    "RTX A2000": ("8.6", 12),
    "RTX 3050": ("8.6", 8),
    "L4": ("8.9", 24),
}


@pytest.mark.parametrize(
    ("gpu", "model", "told"),
    [
        ("RTX 4080", LLAMA_8B, "quantization: fp8_per_tensor or an AWQ or GPTQ checkpoint of 4 bits or a smaller "),
        ("T4", LLAMA_8B, "quantization: fp8_per_tensor or an AWQ or GPTQ checkpoint of 4 bits or a smaller "),
        ("RTX A2000", LLAMA_8B, "2 GPUs of this kind or an AWQ or GPTQ checkpoint of 4 bits or a smaller checkpoint"),
        ("RTX 3050", LLAMA_8B, "4 GPUs of this kind or a smaller checkpoint: at most"),
        ("L4", LLAMA_70B, "8 GPUs of this kind or a smaller checkpoint: at most"),
        ("RTX 4080", replace(LLAMA_8B, weights="awq"), "2 GPUs of this kind or a smaller checkpoint: at most"),
    ],
    ids=["fp8", "fp8 unpacked", "4 bits", "neither", "far too large", "quantized already"],
)
def test_smaller_weights_are_offered_where_they_would_fit(gpu: str, model: ModelShape, told: str) -> None:
    capability, size = SIZES[gpu]
    machine = _machine(Gpu("nvidia", gpu, "GPU-0", size * GIB, size * GIB, capability))
    fit = vllm_fit(model, AUTO, machine, 8192)
    assert told in " or ".join(fit.changes)
    fp8 = vllm_fit(model, VllmSettings(source="/m", quantization="fp8_per_tensor"), machine, 8192)
    assert fp8.fits == ("quantization: fp8_per_tensor" in fit.changes)
    assert "quantization: fp8_per_tensor" not in fp8.changes


def test_fp8_is_offered_only_where_the_gpu_takes_it_and_nobody_has_chosen() -> None:
    old, new = (_machine(Gpu("amd", name, "GPU-0", 16 * GIB, 0, name)) for name in ("gfx90a", "gfx942"))
    assert "quantization: fp8_per_tensor" not in vllm_fit(LLAMA_8B, AUTO, old, 8192).changes
    assert "quantization: fp8_per_tensor" in vllm_fit(LLAMA_8B, AUTO, new, 8192).changes
    chosen = VllmSettings(source="/m", quantization="bitsandbytes")
    assert "quantization: fp8_per_tensor" not in vllm_fit(LLAMA_8B, chosen, new, 8192).changes
    wide = replace(LLAMA_8B, weights="float32")
    assert "quantization: fp8_per_tensor" not in vllm_fit(wide, AUTO, new, 8192).changes


def test_an_environment_of_its_own_leaves_it_fewer_gpus() -> None:
    two = VllmSettings(source="/m", environment={"CUDA_VISIBLE_DEVICES": "2,3"})
    assert [gpu.uuid for gpu in gpus_for(two, MACHINES["8xH100"])] == [
        gpu.uuid for gpu in MACHINES["8xH100"].gpus.devices[2:4]
    ]
    assert "4 GPUs of this kind" in vllm_fit(LLAMA_70B, two, MACHINES["8xH100"], 32768).changes


def test_of_mig_instances_one_counts() -> None:
    parts = tuple(Gpu("nvidia", "H100 MIG 3g.40gb", f"MIG-{number}", 40 * GIB, 39 * GIB, "9.0") for number in range(2))
    assert usable_gpus(parts) == parts[:1]
