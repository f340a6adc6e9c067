"""The export for vLLM: the same weights and the same tokens as the GGUF file."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import pytest

from backends.gguf.demo import DEMO_MODEL_PATH
from backends.gguf.demo.export import export, read_demo
from backends.gguf.demo.names import permute, unpermute
from backends.gguf.llama import Model, self_check

TEXTS: list[str] = json.loads((Path(__file__).parent / "texts.json").read_text(encoding="utf-8"))
# GPT-2's pre-tokenizer, with Python's classes for letters and digits: equal for the strings used here.
PIECES = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+(?!\S)|\s+")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("export") / "demo"
    export(directory)
    return directory


def load(folder: Path, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    return content


def load_tensors(path: Path) -> dict[str, npt.NDArray[np.uint16]]:
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    tensors = {}
    for name, spec in header.items():
        if name != "__metadata__":
            assert spec["dtype"] == "BF16"
            first, last = (start + offset for offset in spec["data_offsets"])
            tensors[name] = np.frombuffer(data[first:last], "<u2").reshape(spec["shape"])
    return tensors


def byte_letters() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {byte: chr(byte) for byte in plain}
    others = [byte for byte in range(256) if byte not in letters]
    return letters | {byte: chr(256 + place) for place, byte in enumerate(others)}


class Tokenizer:
    """A plain reading of tokenizer.json, without the library."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.vocab: dict[str, int] = content["model"]["vocab"]
        self.ranks = {tuple(pair): rank for rank, pair in enumerate(content["model"]["merges"])}
        self.added = {token["content"]: token["id"] for token in content["added_tokens"]}
        self.letters = byte_letters()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in re.split("(" + "|".join(map(re.escape, self.added)) + ")", text):
            if part in self.added:
                ids.append(self.added[part])
            else:
                ids += [number for piece in PIECES.findall(part) for number in self.merge(piece)]
        return ids

    def merge(self, piece: str) -> list[int]:
        symbols = [self.letters[byte] for byte in piece.encode()]
        while len(symbols) > 1:
            pairs = list(itertools.pairwise(symbols))
            best = min(pairs, key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            place = pairs.index(best)
            symbols[place : place + 2] = ["".join(best)]
        return [self.vocab[symbol] for symbol in symbols]


def test_demo_model_is_small() -> None:
    assert DEMO_MODEL_PATH.stat().st_size <= 6_000_000


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    self_check()
    model = Model(DEMO_MODEL_PATH)
    yield model
    model.close()


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_tokenizer_json_splits_as_llama_cpp_does(folder: Path, model: Model, text: str) -> None:
    expected = model.tokenize(text, add_special=False, parse_special=True)
    assert Tokenizer(load(folder, "tokenizer.json")).encode(text) == expected


def test_digits_are_single_tokens() -> None:
    tokens = read_demo().metadata["tokenizer.ggml.tokens"]
    assert not [token for token in tokens if len(token) > 1 and re.search(r"\d", token)]


def test_token_ids_are_complete(folder: Path) -> None:
    content = load(folder, "tokenizer.json")
    ids = [*content["model"]["vocab"].values(), *(token["id"] for token in content["added_tokens"])]
    assert sorted(ids) == list(range(load(folder, "config.json")["vocab_size"]))


def test_weights_equal_the_gguf_bit_for_bit(folder: Path) -> None:
    exported = load_tensors(folder / "model.safetensors")
    config = load(folder, "config.json")
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(DEMO_MODEL_PATH).tensors}
    assert len(exported) == len(tensors) == 2 + 9 * config["num_hidden_layers"]
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj"}
    names |= {"attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj"}
    names |= {"ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    for layer in range(config["num_hidden_layers"]):
        for theirs, ours in names.items():
            bits = exported.pop(f"model.layers.{layer}.{ours}.weight")
            bits = permute(bits, heads[theirs]) if theirs in heads else bits
            same_value(bits, tensors[f"blk.{layer}.{theirs}.weight"].data)
    same_value(exported.pop("model.embed_tokens.weight"), tensors["token_embd.weight"].data)
    same_value(exported.pop("model.norm.weight"), tensors["output_norm.weight"].data)
    assert not exported


def same_value(bits: npt.NDArray[np.uint16], stored: npt.NDArray[Any]) -> None:
    if stored.dtype == np.float32:
        assert np.array_equal((bits.astype(np.uint32) << 16).view(np.float32), stored)
    else:
        assert bits.tobytes() == stored.tobytes()


def test_unpermute_reverts_permute() -> None:
    weight = np.arange(64 * 5).reshape(64, 5)
    assert np.array_equal(unpermute(permute(weight, 2), 2), weight)


def test_permute_puts_rotated_pairs_side_by_side() -> None:
    weight = np.arange(8).reshape(8, 1)
    assert permute(weight, 2).ravel().tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_config_names_the_architecture_and_the_end(folder: Path) -> None:
    config = load(folder, "config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True
    tokens = {token["id"]: token["content"] for token in load(folder, "tokenizer.json")["added_tokens"]}
    assert tokens[config["eos_token_id"]] == "<|im_end|>"
    assert load(folder, "tokenizer_config.json")["chat_template"] == read_demo().metadata["tokenizer.chat_template"]


def test_export_refuses_a_folder_that_holds_something(tmp_path: Path) -> None:
    kept = tmp_path / "notes.txt"
    kept.write_text("mine")
    with pytest.raises(FileExistsError, match="not an empty directory"):
        export(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_export_accepts_an_empty_folder(tmp_path: Path) -> None:
    export(tmp_path)
    assert (tmp_path / "model.safetensors").stat().st_size > 1_000_000
