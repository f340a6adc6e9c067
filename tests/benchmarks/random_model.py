"""Writes a GGUF of a Llama with random weights: the cost of a real model without its download.

    python -m tests.benchmarks.random_model FILE.gguf [--size 0.5b|tiny]

"0.5b" has the shape of a 0.5 B-parameter model (24 layers, 896 wide, 151,936 tokens) in Q8_0, about 530 MB.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType, GGUFWriter, TokenType

_BLOCK = 32  # Q8_0: 32 weights as int8 behind one float16 scale


@dataclass(frozen=True, slots=True)
class Shape:
    """Dimensions of a Llama."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    feed_forward: int
    vocabulary: int
    context: int


SHAPES = {
    "0.5b": Shape(layers=24, width=896, heads=14, kv_heads=2, feed_forward=4864, vocabulary=151_936, context=4096),
    "tiny": Shape(layers=2, width=64, heads=4, kv_heads=2, feed_forward=128, vocabulary=1024, context=2048),
}
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_random_model(path: Path, shape: Shape, *, seed: int = 0, template: str = _TEMPLATE) -> None:
    """Writes `path` at once or not at all."""
    generator = np.random.default_rng(seed)
    partial = path.with_suffix(".partial")
    writer = GGUFWriter(partial, "llama")
    _write_metadata(writer, shape)
    writer.add_chat_template(template)
    kv_width = shape.width // shape.heads * shape.kv_heads
    _add_q8(writer, "token_embd.weight", (shape.vocabulary, shape.width), generator)
    _add_norm(writer, "output_norm.weight", shape.width)
    for layer in range(shape.layers):
        for name, rows, columns in (
            ("attn_q", shape.width, shape.width),
            ("attn_k", kv_width, shape.width),
            ("attn_v", kv_width, shape.width),
            ("attn_output", shape.width, shape.width),
            ("ffn_gate", shape.feed_forward, shape.width),
            ("ffn_up", shape.feed_forward, shape.width),
            ("ffn_down", shape.width, shape.feed_forward),
        ):
            _add_q8(writer, f"blk.{layer}.{name}.weight", (rows, columns), generator)
        _add_norm(writer, f"blk.{layer}.attn_norm.weight", shape.width)
        _add_norm(writer, f"blk.{layer}.ffn_norm.weight", shape.width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    partial.rename(path)


def _write_metadata(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_block_count(shape.layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_vocab_size(shape.vocabulary)
    tokens, merges = _vocabulary(shape.vocabulary)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * (len(tokens) - 2) + [TokenType.CONTROL] * 2)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_bos_token_id(len(tokens) - 1)
    writer.add_add_bos_token(False)


def _vocabulary(size: int) -> tuple[list[str], list[str]]:
    """All bytes, then pairs, triples and quadruples of letters as merges, then the two ChatML tokens."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    # GPT-2's alphabet: bytes that do not print stand as the characters from U+0100 on, in their order.
    others = [b for b in range(256) if b not in printable]
    tokens = [chr(b) if b in printable else chr(256 + others.index(b)) for b in range(256)]
    letters = "etaoinshrdlucmfwypvbgkjqxz"
    merges: list[str] = []
    stems = list(letters)
    while len(tokens) < size - 2:
        grown = [a + b for a, b in product(stems, letters)][: size - 2 - len(tokens)]
        merges += [f"{word[:-1]} {word[-1]}" for word in grown]
        tokens += grown
        stems = grown
    return [*tokens, "<|im_start|>", "<|im_end|>"], merges


def _add_q8(writer: GGUFWriter, name: str, shape: tuple[int, int], generator: np.random.Generator) -> None:
    rows, columns = shape
    blocks = rows * columns // _BLOCK
    data = np.empty((blocks, 2 + _BLOCK), dtype=np.uint8)
    # int8 in [-127, 127] has a standard deviation of 73: this scale gives weights of 1/sqrt(columns).
    scale = np.array([1 / (73 * np.sqrt(columns))], dtype=np.float16)
    data[:, :2] = scale.view(np.uint8)
    data[:, 2:] = generator.integers(-127, 128, size=(blocks, _BLOCK), dtype=np.int8).view(np.uint8)
    raw: npt.NDArray[np.uint8] = data.reshape(rows, columns // _BLOCK * (2 + _BLOCK))
    writer.add_tensor(name, raw, raw_dtype=GGMLQuantizationType.Q8_0)


def _add_norm(writer: GGUFWriter, name: str, width: int) -> None:
    writer.add_tensor(name, np.ones(width, dtype=np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--size", choices=SHAPES, default="0.5b")
    arguments = parser.parse_args()
    write_random_model(arguments.path, SHAPES[arguments.size])


if __name__ == "__main__":
    main()
