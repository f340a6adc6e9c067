"""Small files that llama.cpp loads, of architectures that make a KV cache hard to foresee. All weights are zeros."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFWriter, TokenType

WIDTH, VOCABULARY = 64, 300
FEED_FORWARD = 128
FEED_FORWARD_ROWS: dict[str, tuple[int, ...]] = {
    "ffn_gate": (FEED_FORWARD, WIDTH),
    "ffn_up": (FEED_FORWARD, WIDTH),
    "ffn_down": (WIDTH, FEED_FORWARD),
    "ffn_norm": (WIDTH,),
}


def write_wide_heads(path: Path) -> None:
    """A Llama whose heads are larger than width / heads: 4 of 32 numbers instead of 16, 2 of them with keys."""
    writer = _begin(path, "llama", layers=3, heads=4, kv_heads=2)
    for name in ("key_length", "value_length"):
        writer.add_uint32(f"llama.attention.{name}", 32)
    writer.add_rope_dimension_count(32)
    for layer in range(3):
        _add(writer, f"blk.{layer}", {"attn_q": (128, WIDTH), "attn_k": (64, WIDTH), "attn_v": (64, WIDTH)})
        _add(writer, f"blk.{layer}", {"attn_output": (WIDTH, 128)})
    _end(writer, 3, FEED_FORWARD_ROWS)


def write_recurrent(path: Path) -> None:
    """Mamba: no layer attends, each keeps a state for every conversation."""
    inner, state, rank = 2 * WIDTH, 16, 4
    writer = _begin(path, "mamba", layers=8, heads=0, kv_heads=0)
    sizes = {"conv_kernel": 4, "inner_size": inner, "state_size": state, "time_step_rank": rank}
    for name, value in sizes.items():
        writer.add_uint32(f"mamba.ssm.{name}", value)
    for layer in range(8):
        block = f"blk.{layer}"
        _add(writer, block, {"ssm_in": (2 * inner, WIDTH), "ssm_conv1d": (inner, 4), "ssm_dt": (inner, rank)})
        _add(writer, block, {"ssm_x": (rank + 2 * state, inner), "ssm_out": (WIDTH, inner)})
        shapes = {"ssm_conv1d.bias": (inner,), "ssm_dt.bias": (inner,), "ssm_a": (inner, state), "ssm_d": (inner,)}
        for name, shape in shapes.items():
            writer.add_tensor(f"{block}.{name}", np.zeros(shape, dtype=np.float32))
    _end(writer, 8, {})


def write_hybrid(path: Path) -> None:
    """Granite 4 in small: of four layers the third attends, the others keep a state."""
    inner, state, heads = 2 * WIDTH, 16, 4
    writer = _begin(path, "granitehybrid", layers=4, heads=4, kv_heads=[0, 0, 2, 0])
    sizes = {"conv_kernel": 4, "inner_size": inner, "state_size": state, "time_step_rank": heads, "group_count": 1}
    for name, value in sizes.items():
        writer.add_uint32(f"granitehybrid.ssm.{name}", value)
    writer.add_rope_dimension_count(WIDTH // 4)
    mixed = inner + 2 * state
    for layer in (0, 1, 3):
        block = f"blk.{layer}"
        _add(writer, block, {"ssm_in": (inner + mixed + heads, WIDTH), "ssm_conv1d": (mixed, 4)})
        _add(writer, block, {"ssm_norm": (1, inner), "ssm_out": (WIDTH, inner)})
        shapes = {"ssm_conv1d.bias": (mixed,), "ssm_dt.bias": (heads,), "ssm_a": (heads, 1), "ssm_d": (heads, 1)}
        for name, shape in shapes.items():
            writer.add_tensor(f"{block}.{name}", np.zeros(shape, dtype=np.float32))
    _add(writer, "blk.2", {"attn_q": (WIDTH, WIDTH), "attn_k": (32, WIDTH), "attn_v": (32, WIDTH)})
    _add(writer, "blk.2", {"attn_output": (WIDTH, WIDTH)})
    _end(writer, 4, FEED_FORWARD_ROWS)


def write_latent(path: Path) -> None:
    """DeepSeek in small, without experts: of all heads together 32 numbers of content and 16 of position are kept."""
    rank, rope, plain, heads = 32, 16, 16, 4
    writer = _begin(path, "deepseek2", layers=3, heads=heads, kv_heads=1)
    sizes = {"key_length": rank + rope, "value_length": rank, "key_length_mla": plain + rope, "value_length_mla": 16}
    for name, value in (sizes | {"q_lora_rank": rank, "kv_lora_rank": rank}).items():
        writer.add_uint32(f"deepseek2.attention.{name}", value)
    writer.add_rope_dimension_count(rope)
    for name, value in {
        "leading_dense_block_count": 3,
        "expert_shared_count": 0,
        "expert_feed_forward_length": 8,
    }.items():
        writer.add_uint32(f"deepseek2.{name}", value)
    for layer in range(3):
        block = f"blk.{layer}"
        _add(
            writer,
            block,
            {"attn_q_a": (rank, WIDTH), "attn_q_b": (heads * (plain + rope), rank), "attn_q_a_norm": (rank,)},
        )
        _add(writer, block, {"attn_kv_a_mqa": (rank + rope, WIDTH), "attn_kv_a_norm": (rank,)})
        _add(writer, block, {"attn_k_b": (heads, rank, plain), "attn_v_b": (heads, 16, rank)})
        _add(writer, block, {"attn_output": (WIDTH, heads * 16)})
    _end(writer, 3, FEED_FORWARD_ROWS)


def _begin(path: Path, architecture: str, *, layers: int, heads: int, kv_heads: int | list[int]) -> GGUFWriter:
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(1024)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([f"t{number}" for number in range(VOCABULARY)])
    writer.add_token_types([TokenType.NORMAL] * VOCABULARY)
    writer.add_token_merges(["t 1"])
    writer.add_eos_token_id(1)
    return writer


def _end(writer: GGUFWriter, layers: int, feed_forward: dict[str, tuple[int, ...]]) -> None:
    for layer in range(layers):
        _add(writer, f"blk.{layer}", {"attn_norm": (WIDTH,)} | feed_forward)
    _add(writer, "", {"token_embd": (VOCABULARY, WIDTH), "output_norm": (WIDTH,)})
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: GGUFWriter, block: str, tensors: dict[str, tuple[int, ...]]) -> None:
    for name, shape in tensors.items():
        writer.add_tensor(f"{block}.{name}.weight".removeprefix("."), np.zeros(shape, dtype=np.float32))
