"""Published figures of known models, and the traps between a header and the bytes of a KV cache."""

from __future__ import annotations

from typing import Any

import pytest

from backends.gguf.demo import DEMO_MODEL_PATH
from backends.gguf.header import GgufError, GgufHeader, Tensor, Value
from backends.gguf.shape import read_shape, shape_of
from backends.shape import Layer, ModelShape


def shape(architecture: str, layers: int, width: int, **keys: Any) -> ModelShape:
    """As the header of a model says it; `__` stands for the dot in a name."""
    metadata: dict[str, Value] = {
        "general.architecture": architecture,
        f"{architecture}.block_count": layers,
        f"{architecture}.embedding_length": width,
        f"{architecture}.context_length": 32768,
    }
    metadata |= {f"{architecture}.{name.replace('__', '.')}": value for name, value in keys.items()}
    return shape_of(GgufHeader(metadata, {"tokenizer.ggml.tokens": 1000}, ()))


def kv_bytes(model: ModelShape) -> int:
    """Of one token."""
    return 2 * sum(layer.kv_elements for layer in model.layers)


def state_bytes(model: ModelShape) -> int:
    """Of one conversation."""
    return 4 * sum(layer.state_elements for layer in model.layers)


HEADS = {"attention__head_count": 32, "attention__head_count_kv": 8}
PER_TOKEN = {
    "llama-3.1-8b": (shape("llama", 32, 4096, **HEADS), 131_072),
    "qwen2.5-7b": (shape("qwen2", 28, 3584, attention__head_count=28, attention__head_count_kv=4), 57_344),
    # The head size is not width / heads.
    "qwen3-0.6b": (
        shape(
            "qwen3",
            28,
            1024,
            attention__head_count=16,
            attention__head_count_kv=8,
            attention__key_length=128,
            attention__value_length=128,
        ),
        114_688,
    ),
    "no-kv-heads-named": (shape("gpt2", 12, 768, attention__head_count=12), 12 * 2 * 768 * 2),
    # Latent attention keeps 512 + 64 numbers for all heads, keys alone.
    "deepseek-v3": (
        shape(
            "deepseek2",
            61,
            7168,
            attention__head_count=128,
            attention__head_count_kv=1,
            attention__key_length=576,
            attention__value_length=512,
            attention__key_length_mla=192,
            attention__value_length_mla=128,
        ),
        61 * 576 * 2,
    ),
    # Without the keys of latent attention llama.cpp keeps every head as it is.
    "deepseek-v2-old-file": (
        shape(
            "deepseek2",
            27,
            2048,
            attention__head_count=16,
            attention__key_length=192,
            attention__value_length=128,
        ),
        27 * 16 * 320 * 2,
    ),
    "heads-by-layer": (
        shape("deci", 4, 1024, attention__head_count=8, attention__head_count_kv=(8, 0, 4, 8)),
        20 * 256 * 2,
    ),
    # The last layers use the keys of earlier ones.
    "gemma3n": (
        shape("gemma3n", 30, 2048, attention__head_count=8, attention__head_count_kv=2, attention__key_length=256),
        20 * 2 * 512 * 2,
    ),
    "gemma4": (shape("gemma4", 35, 1536, **HEADS, attention__shared_kv_layers=20), 15 * 8 * 96 * 2),
    "predicts-further-tokens": (shape("glm4moe", 47, 4096, **HEADS, nextn_predict_layers=1), 46 * 8 * 256 * 2),
    # Layers with a window may have heads of another size.
    "windows-with-other-heads": (
        shape(
            "gemma4",
            6,
            1024,
            attention__head_count=8,
            attention__head_count_kv=2,
            attention__key_length=512,
            attention__value_length=512,
            attention__key_length_swa=256,
            attention__value_length_swa=256,
            attention__sliding_window_pattern=(True, True, True, True, True, False),
        ),
        2 * (5 * 2 * 512 + 2 * 1024),
    ),
    "windows-by-period": (
        shape(
            "gemma4",
            4,
            1024,
            attention__head_count=8,
            attention__head_count_kv=2,
            attention__key_length=512,
            attention__value_length=512,
            attention__key_length_swa=256,
            attention__value_length_swa=256,
            attention__sliding_window_pattern=2,
        ),
        2 * (2 * 2 * 512 + 2 * 2 * 1024),
    ),
}


@pytest.mark.parametrize(("model", "expected"), PER_TOKEN.values(), ids=PER_TOKEN.keys())
def test_bytes_of_a_token(model: ModelShape, expected: int) -> None:
    assert kv_bytes(model) == expected
    assert state_bytes(model) == 0


SSM = {"ssm__conv_kernel": 4, "ssm__inner_size": 4096, "ssm__state_size": 128, "ssm__group_count": 16}
STATE = 3 * (4096 + 2 * 16 * 128) + 128 * 4096
RECURRENT = {
    "mamba": (
        shape("mamba", 24, 768, ssm__conv_kernel=4, ssm__inner_size=1536, ssm__state_size=16),
        0,
        24 * (3 * 1536 + 16 * 1536) * 4,
    ),
    "rwkv7": (
        shape("rwkv7", 12, 768, attention__head_count=0, wkv__head_size=64, token_shift_count=2),
        0,
        12 * (2 * 768 + 768 * 64) * 4,
    ),
    # Three of four layers keep a state, the fourth keys and values.
    "qwen3next": (
        shape(
            "qwen3next",
            48,
            2048,
            attention__head_count=16,
            attention__head_count_kv=2,
            attention__key_length=256,
            attention__value_length=256,
            **SSM,
        ),
        12 * 2 * 512 * 2,
        36 * STATE * 4,
    ),
    "granite-hybrid": (
        shape("granitehybrid", 4, 2048, attention__head_count=16, attention__head_count_kv=(0, 0, 4, 0), **SSM),
        4 * 256 * 2,
        3 * STATE * 4,
    ),
    # Layers with neither: they have a feed-forward part instead.
    "nemotron-h": (
        shape(
            "nemotron_h",
            4,
            2048,
            attention__head_count=16,
            attention__head_count_kv=(0, 0, 4, 0),
            feed_forward_length=(0, 8192, 0, 8192),
            **SSM,
        ),
        4 * 256 * 2,
        STATE * 4,
    ),
    "falcon-h1": (shape("falcon-h1", 2, 2048, **HEADS, **SSM), 2 * 8 * 128 * 2, 2 * STATE * 4),
    "lfm2": (
        shape("lfm2", 2, 1024, attention__head_count=16, attention__head_count_kv=(0, 8), shortconv__l_cache=3),
        8 * 128 * 2,
        1024 * 2 * 4,
    ),
    "named-layers": (
        shape("qwen35", 3, 2048, **HEADS, **SSM, attention__recurrent_layers=(True, False, True)),
        8 * 128 * 2,
        2 * STATE * 4,
    ),
}


@pytest.mark.parametrize(("model", "per_token", "state"), RECURRENT.values(), ids=RECURRENT.keys())
def test_recurrent_layers_keep_a_state_and_no_tokens(model: ModelShape, per_token: int, state: int) -> None:
    assert (kv_bytes(model), state_bytes(model)) == (per_token, state)


def test_demo_model() -> None:
    model = read_shape(DEMO_MODEL_PATH)
    assert model.layers == (Layer(kv_elements=3 * 64, kv_heads=3),) * 5
    assert (model.weights, model.weight_bytes, model.vocabulary, model.context_tokens) == (
        "BF16",
        3_744_000,
        2048,
        2048,
    )


def test_experts_of_one_token_count_together() -> None:
    model = shape(
        "qwen3moe", 1, 2048, **HEADS, feed_forward_length=6144, expert_used_count=8, expert_feed_forward_length=768
    )
    assert model.feed_forward == 6144
    model = shape(
        "qwen3moe", 1, 2048, **HEADS, expert_used_count=8, expert_shared_count=1, expert_feed_forward_length=1000
    )
    assert model.feed_forward == 9000


def test_vocabulary_is_the_embeddings() -> None:
    header = GgufHeader(
        {"general.architecture": "a", "a.block_count": 1, "a.embedding_length": 8, "a.context_length": 8},
        {"tokenizer.ggml.tokens": 10},
        (Tensor("token_embd.weight", (8, 12), "Q8_0", 100), Tensor("x", (1,), "F32", 4)),
    )
    model = shape_of(header)
    assert (model.vocabulary, model.weights, model.weight_bytes) == (12, "Q8_0", 104)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"block_count": 0}, "0 layers; a projector or an adapter is no model"),
        ({"block_count": 100_000}, "100000 layers"),
        ({"block_count": float("nan")}, "block_count is nan"),
        ({"embedding_length": -1}, "embedding_length is -1"),
        ({"attention__head_count_kv": (1, -5)}, "head_count_kv is -5"),
        ({"attention__key_length": "long"}, "key_length is 'long'"),
    ],
    ids=str,
)
def test_sizes_that_are_none_are_refused(keys: dict[str, Any], told: str) -> None:
    with pytest.raises(GgufError, match=told):
        shape("llama", **({"layers": 2, "width": 64} | {"attention__head_count": 2} | keys))


def test_a_file_without_sizes_is_told_by_what_is_missing() -> None:
    with pytest.raises(GgufError, match=r"it does not say clip\.block_count"):
        shape_of(GgufHeader({"general.architecture": "clip"}, {}, ()))
