"""From a checkpoint's config.json to the sizes of the model, as vLLM keeps its KV cache. Pure.

Names differ by family and age; each list below is in the order of trust. Sources: vllm/config/model.py and
vllm/v1/kv_cache_interface.py of 0.33. Neighbour: checkpoint.py (reads the files).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backends.shape import Layer, ModelShape

MAX_LAYERS = 1024

_NESTED = ("text_config", "language_config", "llm_config")
_LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_WIDTH = ("hidden_size", "n_embd", "d_model")
_HEADS = ("num_attention_heads", "n_head", "n_heads")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
_FEED_FORWARD = ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner")
_CONTEXT = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
_EXPERT_WIDTH = ("moe_intermediate_size", "expert_ffn_hidden_size")
# Full attention in each so many layers where the file has no list and no period: what these families were made with.
_PERIODS = {"gemma2": 2, "gemma3_text": 6, "cohere2": 4}
_LINEAR_PERIODS = {"qwen3_next": 4}
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


class CheckpointError(Exception):
    """The checkpoint cannot be a model: the message names the place and says why."""


def shape_of(config: Mapping[str, Any], weight_bytes: int, dtype: str = "auto") -> ModelShape:
    """The model of `config` once vLLM has loaded it as `dtype`. Raises CheckpointError where a size is missing or
    none."""
    quantized = config.get("quantization_config")
    for name in _NESTED:
        if isinstance(config.get(name), dict):
            dtype_of_all, tied = config.get("dtype") or config.get("torch_dtype"), config.get("tie_word_embeddings")
            config = {"dtype": dtype_of_all, "tie_word_embeddings": tied, **config[name]}
    stored = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16").removeprefix("torch.")
    loaded = dtype if dtype != "auto" else "bfloat16" if stored == "float32" else stored
    if not isinstance(quantized, dict):
        # What was saved in 4 bytes is computed with in 2 unless somebody asks for it.
        weight_bytes = weight_bytes * _BYTES.get(loaded, 2) // _BYTES.get(stored, 2)
    n_layers = _number(config, _LAYERS)
    if not 0 < n_layers <= MAX_LAYERS:
        raise CheckpointError(f"it has {n_layers} layers")
    return ModelShape(
        architecture=str(config.get("model_type") or "unknown"),
        weights=str(quantized.get("quant_method")) if isinstance(quantized, dict) else loaded,
        weight_bytes=weight_bytes,
        layers=tuple(_layer(config, index, n_layers) for index in range(n_layers)),
        width=_number(config, _WIDTH),
        feed_forward=_feed_forward(config),
        heads=_number(config, _HEADS, 0),
        vocabulary=_number(config, ("vocab_size",)),
        context_tokens=_number(config, _CONTEXT, 1 << 30),
        element_bytes=_BYTES.get(loaded, 2),
        tied=config.get("tie_word_embeddings") is True,
    )


def _number(config: Mapping[str, Any], names: tuple[str, ...], otherwise: int | None = None) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, list):
            value = max((item for item in value if isinstance(item, int)), default=None)
        if value is None:
            continue
        if not isinstance(value, int) or not 0 <= value < 1 << 31:
            raise CheckpointError(f"{name} is {value!r}")
        return value
    if otherwise is None:
        raise CheckpointError(f"it does not say {names[0]}")
    return otherwise


def _feed_forward(config: Mapping[str, Any]) -> int:
    dense = _number(config, _FEED_FORWARD, 4 * _number(config, _WIDTH))
    experts = _number(config, ("num_experts_per_tok",), 0)
    return max(dense, experts * _number(config, _EXPERT_WIDTH, dense))


def _layer(config: Mapping[str, Any], index: int, n_layers: int) -> Layer:
    kind = _kind(config, index)
    if kind == "none":
        return Layer()
    if kind in ("linear", "mamba", "conv"):
        return Layer(state_elements=_state_elements(config, kind))
    if index >= n_layers - _number(config, ("num_kv_shared_layers",), 0):
        return Layer()
    window = _window(config, index, kind)
    if config.get("kv_lora_rank"):
        # Latent attention: one compressed row for all heads, kept whole by every GPU.
        return Layer(_number(config, ("kv_lora_rank",)) + _number(config, ("qk_rope_head_dim",), 0), 1, window)
    heads = _number(config, _HEADS)
    kv_heads = 1 if config.get("multi_query") else _number(config, _KV_HEADS, heads)
    head = _number(config, ("head_dim", "attention_head_dim"), 0) or _number(config, _WIDTH) // max(heads, 1)
    state = _state_elements(config, "mamba") if config.get("model_type") == "falcon_h1" else 0
    return Layer(kv_heads * (head + (_number(config, ("v_head_dim",), 0) or head)), max(kv_heads, 1), window, state)


def _kind(config: Mapping[str, Any], index: int) -> str:
    """full, sliding, linear, mamba, conv or none."""
    listed = config.get("layer_types") or config.get("layers_block_type")
    if isinstance(listed, list) and index < len(listed):
        word = str(listed[index])
        return next((kind for kind in ("sliding", "linear", "mamba", "conv") if kind in word), "full")
    pattern = config.get("hybrid_override_pattern")  # Nemotron-H: M amba, * attention, - and E without either
    if isinstance(pattern, str) and index < len(pattern):
        return {"M": "mamba", "*": "full"}.get(pattern[index], "none")
    if config.get("attn_layer_period"):  # Jamba
        period, offset = _number(config, ("attn_layer_period",)), _number(config, ("attn_layer_offset",), 0)
        return "full" if index % period == offset else "mamba"
    family = str(config.get("model_type"))
    if interval := _number(config, ("full_attention_interval",), _LINEAR_PERIODS.get(family, 0)):
        return "full" if (index + 1) % interval == 0 else "linear"
    return "mamba" if family in ("mamba", "mamba2", "falcon_mamba") else "full"


def _window(config: Mapping[str, Any], index: int, kind: str) -> int | None:
    """Of this layer, None for all tokens."""
    window = _number(config, ("sliding_window",), 0)
    if not window or config.get("use_sliding_window") is False:
        return None
    if config.get("layer_types"):
        return window if kind == "sliding" else None
    period = _number(config, ("sliding_window_pattern",), _PERIODS.get(str(config.get("model_type")), 0))
    if period:
        return None if (index + 1) % period == 0 else window
    if config.get("use_sliding_window"):
        return window if index >= _number(config, ("max_window_layers",), 0) else None
    return window


def _state_elements(config: Mapping[str, Any], kind: str) -> int:
    """Of a conversation in one recurrent layer, the convolution's part included."""
    if kind == "conv":
        return _number(config, _WIDTH) * _number(config, ("conv_L_cache",), 3)
    if kind == "linear":
        keys = _number(config, ("linear_num_key_heads",), 0) * _number(config, ("linear_key_head_dim",), 0)
        head = _number(config, ("linear_value_head_dim",), 0)
        values = _number(config, ("linear_num_value_heads",), 0) * head
        kernel = _number(config, ("linear_conv_kernel_dim",), 4)
        return (kernel - 1) * (2 * keys + values) + values * _number(config, ("linear_key_head_dim",), 0)
    inner = _number(config, ("mamba_n_heads", "mamba_num_heads"), 0) * _number(
        config, ("mamba_d_head", "mamba_head_dim"), 0
    )
    inner = inner or _number(config, ("mamba_expand", "expand"), 2) * _number(config, _WIDTH)
    state = _number(config, ("mamba_d_state", "ssm_state_size", "state_size"), 128)
    groups = _number(config, ("mamba_n_groups", "n_groups"), 0)
    return (_number(config, ("mamba_d_conv", "conv_kernel"), 4) - 1) * (inner + 2 * groups * state) + inner * state
