"""Published figures of known models, from the fields of their config.json."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.shape import ModelShape
from backends.vllm.fit import kv_bytes, vllm_fit
from backends.vllm.shape import CheckpointError, shape_of
from config.vllm import VllmSettings
from tests.backends.machines import MACHINES

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "torch_dtype": "bfloat16",
}


def shape(**fields: Any) -> ModelShape:
    return shape_of(LLAMA | fields, 1000)


def per_token(model: ModelShape, tokens: int = 100_000) -> float:
    return kv_bytes(model, tokens, 1) / tokens


PER_TOKEN = {
    "llama-3.1-8b": (shape(), 131_072),
    "qwen2.5-7b": (
        shape(
            num_hidden_layers=28,
            hidden_size=3584,
            num_attention_heads=28,
            num_key_value_heads=4,
            use_sliding_window=False,
            sliding_window=131072,
        ),
        57_344,
    ),
    "qwen3-0.6b": (
        shape(num_hidden_layers=28, hidden_size=1024, num_attention_heads=16, head_dim=128),
        114_688,
    ),
    "every-head-its-own": (shape(num_key_value_heads=None), 4 * 131_072),
    "falcon-multi-query": (shape(multi_query=True), 32 * 2 * 128 * 2),
    "deepseek-v3": (
        shape(num_hidden_layers=61, num_attention_heads=128, kv_lora_rank=512, qk_rope_head_dim=64, v_head_dim=128),
        61 * 576 * 2,
    ),
    "vision-language": (
        shape_of({"model_type": "vl", "vision_config": {"hidden_size": 7}, "text_config": LLAMA}, 1000),
        131_072,
    ),
    "last-layers-share": (shape(num_kv_shared_layers=16), 65_536),
    "nemotron-h": (
        shape(num_hidden_layers=8, hybrid_override_pattern="M-M*M-M*", mamba_num_heads=0, mamba_expand=2),
        2 * 2048 * 2 + 4 * (3 * 8192 + 8192 * 128) * 4 / 100_000,
    ),
    "jamba": (
        shape(num_hidden_layers=8, attn_layer_period=8, attn_layer_offset=4, mamba_d_state=16, mamba_expand=2),
        2048 * 2 + 7 * (3 * 8192 + 8192 * 16) * 4 / 100_000,
    ),
    "qwen3-next": (
        shape(
            model_type="qwen3_next",
            num_hidden_layers=4,
            head_dim=256,
            num_key_value_heads=2,
            linear_num_key_heads=16,
            linear_key_head_dim=128,
            linear_num_value_heads=32,
            linear_value_head_dim=128,
            linear_conv_kernel_dim=4,
        ),
        2 * 2 * 256 * 2 + 3 * (3 * (2 * 2048 + 4096) + 4096 * 128) * 4 / 100_000,
    ),
}


@pytest.mark.parametrize(("model", "expected"), PER_TOKEN.values(), ids=PER_TOKEN.keys())
def test_bytes_of_a_token(model: ModelShape, expected: float) -> None:
    assert per_token(model) == pytest.approx(expected, abs=0.01)


ALL, WINDOW = 2048 * 2, 2048 * 2 * 1000 / 100_000
WINDOWS = {
    "mistral": (shape(num_hidden_layers=2, sliding_window=1000), 2 * WINDOW),
    "named": (
        shape(num_hidden_layers=2, sliding_window=1000, layer_types=["sliding_attention", "full_attention"]),
        WINDOW + ALL,
    ),
    "gemma3": (shape(model_type="gemma3_text", num_hidden_layers=12, sliding_window=1000), 10 * WINDOW + 2 * ALL),
    "period": (shape(num_hidden_layers=4, sliding_window=1000, sliding_window_pattern=4), 3 * WINDOW + ALL),
    "upper-layers": (
        shape(num_hidden_layers=4, sliding_window=1000, use_sliding_window=True, max_window_layers=3),
        3 * ALL + WINDOW,
    ),
    "switched-off": (shape(num_hidden_layers=2, sliding_window=1000, use_sliding_window=False), 2 * ALL),
}


@pytest.mark.parametrize(("model", "expected"), WINDOWS.values(), ids=WINDOWS.keys())
def test_layers_with_a_window_keep_the_window(model: ModelShape, expected: float) -> None:
    assert per_token(model) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("fields", "dtype", "weight_bytes", "element_bytes", "named"),
    [
        ({}, "auto", 1000, 2, "bfloat16"),
        ({}, "float32", 2000, 4, "float32"),
        ({"torch_dtype": "float32"}, "auto", 500, 2, "bfloat16"),
        ({"torch_dtype": None, "dtype": "float16"}, "auto", 1000, 2, "float16"),
        ({"quantization_config": {"quant_method": "awq"}, "torch_dtype": "float32"}, "auto", 1000, 2, "awq"),
    ],
)
def test_weights_are_as_large_as_they_are_loaded(
    fields: dict[str, Any], dtype: str, weight_bytes: int, element_bytes: int, named: str
) -> None:
    model = shape_of(LLAMA | fields, 1000, dtype)
    assert (model.weight_bytes, model.element_bytes, model.weights) == (weight_bytes, element_bytes, named)


def test_experts_of_one_token_count_together() -> None:
    assert shape(num_experts_per_tok=8, moe_intermediate_size=4096).feed_forward == 32768


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"num_hidden_layers": 0}, "0 layers"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers"),
        ({"hidden_size": -1}, "hidden_size is -1"),
        ({"hidden_size": "wide"}, "hidden_size is 'wide'"),
        ({"num_key_value_heads": 1.5}, r"num_key_value_heads is 1\.5"),
        ({"vocab_size": None}, "it does not say vocab_size"),
    ],
    ids=str,
)
def test_sizes_that_are_none_are_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        shape(**fields)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2**40),
    st.floats(),
    st.sampled_from(["", "x", "M*-", "float32"]),
    st.lists(st.sampled_from(["full_attention", "sliding_attention", "mamba", 3, None]), max_size=40),
    st.dictionaries(st.sampled_from(["hidden_size", "quant_method"]), st.integers() | st.none(), max_size=2),
)
FIELDS = [
    *LLAMA,
    *("text_config", "quantization_config", "dtype", "layer_types", "layers_block_type", "hybrid_override_pattern"),
    *("attn_layer_period", "attn_layer_offset", "full_attention_interval", "num_kv_shared_layers", "kv_lora_rank"),
    *("qk_rope_head_dim", "v_head_dim", "head_dim", "multi_query", "sliding_window", "sliding_window_pattern"),
    *("use_sliding_window", "max_window_layers", "linear_num_key_heads", "mamba_d_state", "num_experts_per_tok"),
]


@settings(max_examples=500)
@given(fields=st.dictionaries(st.sampled_from(FIELDS), ODD, max_size=6))
def test_whatever_a_config_says_is_a_shape_or_an_error_of_ours(fields: dict[str, Any]) -> None:
    try:
        model = shape_of(LLAMA | fields, 10**9)
    except CheckpointError:
        return
    fit = vllm_fit(model, VllmSettings(source="/m"), MACHINES["8xH100"], None)
    assert fit.needs.total_bytes > 0
