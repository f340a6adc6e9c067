"""Writes the demo model as a Hugging Face folder for vLLM: `python -m backends.gguf.demo.export DIRECTORY`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from backends.gguf.demo import DEMO_MODEL_PATH
from backends.gguf.demo.names import LAYER_NAMES, unpermute

Bits = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class DemoFile:
    """What the GGUF file holds: its metadata by key and its tensors as BF16 bit patterns by GGUF name."""

    metadata: dict[str, Any]
    tensors: dict[str, Bits]

    def llama(self, key: str) -> Any:
        return self.metadata[f"llama.{key}"]

    def token(self, key: str) -> Any:
        return self.metadata[f"tokenizer.{key}"]


def read_demo(path: Path = DEMO_MODEL_PATH) -> DemoFile:
    """Reads the file; norms are F32 there, but with values that BF16 holds exactly."""
    reader = gguf.GGUFReader(path)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    return DemoFile(metadata, {tensor.name: _bits(tensor) for tensor in reader.tensors})


def _bits(tensor: Any) -> Bits:
    if tensor.tensor_type == gguf.GGMLQuantizationType.F32:
        words: npt.NDArray[np.uint32] = np.ascontiguousarray(tensor.data).view(np.uint32)
        if np.any(words & 0xFFFF):
            raise ValueError(f"{tensor.name} has values that BF16 cannot hold")
        return (words >> 16).astype(np.uint16)
    if tensor.tensor_type != gguf.GGMLQuantizationType.BF16:
        raise ValueError(f"{tensor.name} is {tensor.tensor_type.name}, expected BF16 or F32")
    bits: Bits = np.ascontiguousarray(tensor.data).view(np.uint16)
    return bits


def hugging_face_tensors(demo: DemoFile) -> Iterator[tuple[str, Bits]]:
    """The tensors under Hugging Face's names, queries and keys back in its row order."""
    heads = {"q_proj": demo.llama("attention.head_count"), "k_proj": demo.llama("attention.head_count_kv")}
    modules = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), "self_attn.")
    modules |= dict.fromkeys(("gate_proj", "up_proj", "down_proj"), "mlp.")
    yield "model.embed_tokens.weight", demo.tensors["token_embd.weight"]
    yield "model.norm.weight", demo.tensors["output_norm.weight"]
    for layer in range(demo.llama("block_count")):
        for name, gguf_name in LAYER_NAMES.items():
            bits = demo.tensors[f"blk.{layer}.{gguf_name}.weight"]
            if name in heads:
                bits = unpermute(bits, heads[name])
            yield f"model.layers.{layer}.{modules.get(name, '')}{name}.weight", bits


def model_config(demo: DemoFile) -> dict[str, Any]:
    """config.json; the RoPE base stands in the place of transformers 4 and of 5."""
    heads: int = demo.llama("attention.head_count")
    base: float = demo.llama("rope.freq_base")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": demo.token("ggml.bos_token_id"),
        "dtype": "bfloat16",
        "eos_token_id": demo.token("ggml.eos_token_id"),
        "head_dim": demo.llama("embedding_length") // heads,
        "hidden_act": "silu",
        "hidden_size": demo.llama("embedding_length"),
        "intermediate_size": demo.llama("feed_forward_length"),
        "max_position_embeddings": demo.llama("context_length"),
        "mlp_bias": False,
        "num_attention_heads": heads,
        "num_hidden_layers": demo.llama("block_count"),
        "num_key_value_heads": demo.llama("attention.head_count_kv"),
        "pad_token_id": demo.token("ggml.padding_token_id"),
        "rms_norm_eps": round(demo.llama("attention.layer_norm_rms_epsilon"), 10),
        "rope_parameters": {"rope_theta": base, "rope_type": "default"},
        "rope_theta": base,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "vocab_size": len(demo.token("ggml.tokens")),
    }


def _added_tokens(demo: DemoFile) -> list[dict[str, Any]]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = {gguf.TokenType.CONTROL: True, gguf.TokenType.USER_DEFINED: False}
    pairs = zip(demo.token("ggml.tokens"), demo.token("ggml.token_type"), strict=True)
    return [
        {"id": number, "content": token, **plain, "special": special[kind]}
        for number, (token, kind) in enumerate(pairs)
        if kind in special
    ]


def tokenizer(demo: DemoFile) -> dict[str, Any]:
    """tokenizer.json: byte-level BPE behind GPT-2's pre-tokenizer, as llama.cpp's `gpt-2` splits."""
    added = _added_tokens(demo)
    outside = {token["id"] for token in added}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": {token: n for n, token in enumerate(demo.token("ggml.tokens")) if n not in outside},
        "merges": [merge.split(" ") for merge in demo.token("ggml.merges")],
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": model,
    }


def special_tokens(demo: DemoFile) -> dict[str, str]:
    """special_tokens_map.json."""
    tokens: list[str] = demo.token("ggml.tokens")
    ids = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "pad_token": "padding_token_id"}
    return {name: tokens[demo.token(f"ggml.{key}")] for name, key in ids.items()}


def tokenizer_config(demo: DemoFile) -> dict[str, Any]:
    """tokenizer_config.json with the chat template of the GGUF file."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special_tokens(demo),
        "add_bos_token": False,
        "added_tokens_decoder": {str(token.pop("id")): token for token in _added_tokens(demo)},
        "chat_template": demo.token("chat_template"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": demo.llama("context_length"),
    }


def export(directory: Path) -> None:
    """Writes the folder from demo.gguf alone. Raises FileExistsError when `directory` already holds something."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists and is not an empty directory; choose another place")
    directory.mkdir(parents=True, exist_ok=True)
    demo = read_demo()
    config = model_config(demo)
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    files = {
        "config.json": config,
        "generation_config.json": generation,
        "special_tokens_map.json": special_tokens(demo),
        "tokenizer.json": tokenizer(demo),
        "tokenizer_config.json": tokenizer_config(demo),
    }
    for name, content in files.items():
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        (directory / name).write_text(text, encoding="utf-8")
    _write_safetensors(directory / "model.safetensors", dict(hugging_face_tensors(demo)))


def _write_safetensors(path: Path, tensors: dict[str, Bits]) -> None:
    """Format: header length (8 bytes, little-endian), JSON header, data. The library takes BF16 only from PyTorch."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, bits in tensors.items():
        header[name] = {"dtype": "BF16", "shape": list(bits.shape), "data_offsets": [offset, offset + bits.nbytes]}
        offset += bits.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data must start at a multiple of 8
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for bits in tensors.values():
            file.write(bits.astype("<u2").tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    export(parser.parse_args().directory)


if __name__ == "__main__":
    main()
