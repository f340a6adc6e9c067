"""From a GGUF's header to the sizes of the model, by the rules of the llama.cpp that is pinned here.

Sources: llama-model.cpp (load_hparams, create_memory), llama-hparams.cpp (n_embd_k_gqa, n_embd_r, n_embd_s),
llama-kv-cache.cpp and models/*.cpp of the sources in llama-cpp-python 0.3.36. Neighbour: header.py (reads the file).
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from backends.gguf.header import GgufError, GgufHeader, Value, read_header
from backends.shape import Layer, ModelShape

# Every layer is recurrent, none attends.
_RECURRENT = frozenset({"mamba", "mamba2", "rwkv6", "rwkv6qwen2", "rwkv7", "arwkv7"})
# Every layer is both.
_PARALLEL_HYBRID = frozenset({"falcon-h1"})
# One layer in so many attends, the others are recurrent, unless the file lists them.
_INTERVAL_HYBRID = frozenset({"qwen3next", "qwen35", "qwen35moe", "minimax-01"})
_ATTENTION_INTERVAL = 4
# Fixed in llama.cpp where the file does not say it.
_OWN_KV_LAYERS = {"gemma3n": 20}
_MAX_LAYERS = 512


def read_shape(path: Path) -> ModelShape:
    """The sizes of the model that begins at `path`. Raises GgufError, which names the file."""
    header = read_header(path)
    try:
        return shape_of(header)
    except GgufError as error:
        raise GgufError(f"{path}: {error}") from error


def shape_of(header: GgufHeader) -> ModelShape:
    """Raises GgufError where a size is missing that every model has, or is none."""
    keys = _Keys(header)
    n_layers = keys.number("block_count")
    if not 0 < n_layers <= _MAX_LAYERS:
        raise GgufError(f"it has {n_layers} layers; a projector or an adapter is no model of its own")
    by_type: Counter[str] = Counter()
    for tensor in header.tensors:
        by_type[tensor.type_name] += tensor.n_bytes
    embedding = next((tensor for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
    vocabulary = header.lengths.get("tokenizer.ggml.tokens", 0)
    if embedding is not None and len(embedding.shape) == 2:
        vocabulary = embedding.shape[1]
    return ModelShape(
        architecture=header.architecture,
        weights=by_type.most_common(1)[0][0] if by_type else "none",
        weight_bytes=by_type.total(),
        layers=tuple(_layer(keys, index, n_layers) for index in range(n_layers)),
        width=keys.number("embedding_length"),
        feed_forward=_feed_forward(keys, n_layers),
        heads=max(keys.per_layer("attention.head_count", n_layers)),
        vocabulary=vocabulary,
        context_tokens=keys.number("context_length"),
    )


class _Keys:
    """The model's own metadata, numbers only."""

    def __init__(self, header: GgufHeader) -> None:
        self._metadata = header.metadata
        self.architecture = header.architecture

    def optional(self, name: str) -> int | None:
        value = self._metadata.get(f"{self.architecture}.{name}")
        if isinstance(value, tuple):
            value = value[0] if value else 0
        return None if value is None else self._size(name, value)

    def _size(self, name: str, value: Value) -> int:
        # Not for NaN either.
        if isinstance(value, int | float) and 0 <= value < 1 << 31:
            return int(value)
        raise GgufError(f"{self.architecture}.{name} is {value!r}")

    def number(self, name: str, otherwise: int | None = None) -> int:
        value = self.optional(name)
        if value is None:
            value = otherwise
        if value is None:
            raise GgufError(f"it does not say {self.architecture or 'general'}.{name}")
        return value

    def per_layer(self, name: str, n_layers: int, otherwise: int = 0) -> list[int]:
        """One number for each layer; the file has one for all, or a list."""
        value = self._metadata.get(f"{self.architecture}.{name}")
        if isinstance(value, tuple) and len(value) >= n_layers:
            return [self._size(name, number) for number in value[:n_layers]]
        return [self.number(name, otherwise)] * n_layers


def _feed_forward(keys: _Keys, n_layers: int) -> int:
    """The widest row between two layers; of a mixture, the experts that work on one token side by side."""
    dense = max(keys.per_layer("feed_forward_length", n_layers))
    experts = keys.number("expert_used_count", 0) + keys.number("expert_shared_count", 0)
    return max(dense, experts * keys.number("expert_feed_forward_length", dense))


def _layer(keys: _Keys, index: int, n_layers: int) -> Layer:
    recurrent = _is_recurrent(keys, index, n_layers)
    state = _state_elements(keys) if recurrent else 0
    if recurrent and keys.architecture not in _PARALLEL_HYBRID:
        return Layer(state_elements=state)
    if not _has_own_kv(keys, index, n_layers):
        return Layer()
    kv_heads = keys.per_layer("attention.head_count_kv", n_layers, _heads(keys, index, n_layers))[index]
    head_k, head_v = _head_sizes(keys, index, n_layers)
    return Layer(kv_elements=kv_heads * (head_k + head_v), kv_heads=max(kv_heads, 1), state_elements=state)


def _heads(keys: _Keys, index: int, n_layers: int) -> int:
    return keys.per_layer("attention.head_count", n_layers)[index]


def _head_sizes(keys: _Keys, index: int, n_layers: int) -> tuple[int, int]:
    """(key, value) numbers of one head. With multi-head latent attention only the compressed keys are kept: the values
    are computed from them."""
    usual = keys.number("embedding_length") // max(_heads(keys, 0, n_layers), 1)
    suffix = "_swa" if _slides(keys, index, n_layers) and keys.optional("attention.key_length_swa") else ""
    head_k = keys.number(f"attention.key_length{suffix}", usual)
    if keys.optional("attention.key_length_mla"):
        return head_k, 0
    return head_k, keys.number(f"attention.value_length{suffix}", usual)


def _slides(keys: _Keys, index: int, n_layers: int) -> bool:
    """Whether the layer looks at a window only. The engine keeps such layers' caches whole (llama.cpp's `swa_full`),
    for prefixes to be reused; what differs is the size of a head."""
    name = "attention.sliding_window_pattern"
    pattern = keys.per_layer(name, n_layers)
    period = pattern[0]
    if len(set(pattern)) > 1 or period in (0, 1):
        return bool(pattern[index])
    return index % period < period - 1


def _has_own_kv(keys: _Keys, index: int, n_layers: int) -> bool:
    """Not: layers that use another one's keys, and those that only predict further tokens."""
    shared = keys.number("attention.shared_kv_layers", 0)
    own = _OWN_KV_LAYERS.get(keys.architecture, n_layers - shared)
    return index < min(own, n_layers - keys.number("nextn_predict_layers", 0))


def _is_recurrent(keys: _Keys, index: int, n_layers: int) -> bool:
    if keys.architecture in _RECURRENT | _PARALLEL_HYBRID:
        return True
    listed = keys.per_layer("attention.recurrent_layers", n_layers)
    if any(listed):
        return bool(listed[index])
    interval = keys.number(
        "full_attention_interval", _ATTENTION_INTERVAL if keys.architecture in _INTERVAL_HYBRID else 0
    )
    if interval:
        return (index + 1) % interval != 0 and index < n_layers - keys.number("nextn_predict_layers", 0)
    # The other hybrids tell by a list in which their recurrent layers have no heads; with a feed-forward part and no
    # heads a layer is neither (Nemotron-H).
    kv_heads = keys.per_layer("attention.head_count_kv", n_layers, _heads(keys, index, n_layers))
    feed_forward = keys.per_layer("feed_forward_length", n_layers)
    neither = len(set(feed_forward)) > 1 and feed_forward[index] > 0 and keys.architecture.startswith("nemotron_h")
    return kv_heads[index] == 0 and _state_elements(keys) > 0 and not neither


def _state_elements(keys: _Keys) -> int:
    """n_embd_r + n_embd_s: what a recurrent layer keeps of the convolution and of the state, in numbers of 4 bytes."""
    width = keys.number("embedding_length")
    if head := keys.optional("wkv.head_size"):
        return keys.number("token_shift_count", 2) * width + width * head
    if cache := keys.optional("shortconv.l_cache"):
        return width * (cache - 1)
    kernel = keys.number("ssm.conv_kernel", 0)
    if head := keys.optional("kda.head_dim"):
        heads = keys.number("attention.head_count")
        return 3 * (max(kernel, 1) - 1 or 3) * heads * head + head * head * heads
    inner, state = keys.number("ssm.inner_size", 0), keys.number("ssm.state_size", 0)
    groups = keys.number("ssm.group_count", 0)
    return max(kernel - 1, 0) * (inner + 2 * groups * state) + state * inner
