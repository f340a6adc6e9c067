"""What of a model decides how much memory it needs, whatever its format. Plain data.

Neighbours: gguf/shape.py and checkpoint.py (make it from files), fit.py (computes with it).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Layer:
    """What one layer keeps of a conversation.

    `kv_elements` are numbers per token, keys and values together; 0 where the layer attends to nothing or to the keys
    of another layer. `kv_heads` is how many parts tensor parallelism can cut them into; 1 where every GPU keeps all of
    them. `window` is how many tokens back it looks, None for all. `state_elements` are numbers per conversation,
    whatever its length (recurrent layers).
    """

    kv_elements: int = 0
    kv_heads: int = 1
    window: int | None = None
    state_elements: int = 0


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A model's sizes. `weights` names the type of most of its weights, such as "Q4_K" or "BF16"; `element_bytes` is
    the size of one number of its KV cache; `context_tokens` is what it was trained for. `tied`: the output layer is
    known to be the embeddings once more, which are stored once."""

    architecture: str
    weights: str
    weight_bytes: int
    layers: tuple[Layer, ...]
    width: int
    feed_forward: int
    heads: int
    vocabulary: int
    context_tokens: int
    element_bytes: int = 2
    tied: bool = False
