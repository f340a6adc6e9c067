"""Folders in the Hugging Face layout, the demo model's export among them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from backends.gguf.demo import DEMO_MODEL_PATH
from backends.gguf.shape import read_shape
from backends.vllm.checkpoint import local_folder, read_checkpoint
from backends.vllm.demo import demo_folder
from backends.vllm.shape import CheckpointError

CONFIG = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "vocab_size": 1000,
    "torch_dtype": "float16",
}


def _folder(root: Path, files: dict[str, int], index: Any = None, config: Any = CONFIG) -> Path:
    """`files` by their sizes."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "config.json").write_text(json.dumps(config))
    for name, size in files.items():
        (root / name).write_bytes(bytes(size))
    if index is not None:
        (root / "model.safetensors.index.json").write_text(json.dumps(index))
    return root


def test_export_of_the_demo_model_has_the_sizes_of_its_gguf() -> None:
    exported, gguf = read_checkpoint(demo_folder()), read_shape(DEMO_MODEL_PATH)
    assert (exported.layers, exported.width, exported.vocabulary) == (gguf.layers, gguf.width, gguf.vocabulary)
    assert exported.weight_bytes == pytest.approx(gguf.weight_bytes, rel=0.05)


def test_weights_are_the_files_that_are_loaded(tmp_path: Path) -> None:
    assert read_checkpoint(_folder(tmp_path / "one", {"model.safetensors": 700})).weight_bytes == 700
    twice = {"model-1.safetensors": 500, "model-2.safetensors": 300, "consolidated.safetensors": 800}
    assert read_checkpoint(_folder(tmp_path / "twice", twice)).weight_bytes == 800
    index = {"metadata": {"total_size": 3}, "weight_map": {"a": "model-1.safetensors", "b": "model-1.safetensors"}}
    assert read_checkpoint(_folder(tmp_path / "index", twice, index)).weight_bytes == 500


@pytest.mark.parametrize(
    ("files", "index", "config", "told"),
    [
        ({}, None, CONFIG, "it has no .safetensors files"),
        ({}, {"weight_map": {"a": "../../etc/passwd"}}, CONFIG, "names the file '../../etc/passwd'"),
        ({}, {"weight_map": {"a": ["x"]}}, CONFIG, r"names the file \['x'\]"),
        ({}, {"weight_map": {"a": "gone.safetensors"}}, CONFIG, "gone.safetensors: No such file"),
        ({}, [], CONFIG, "holds no object"),
        ({"model.safetensors": 1}, None, {}, "it does not say num_hidden_layers"),
    ],
    ids=["no-weights", "a-file-elsewhere", "a-list", "a-file-that-is-gone", "no-object", "no-sizes"],
)
def test_what_is_no_checkpoint_is_told(
    files: dict[str, int], index: Any, config: Any, told: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=told):
        read_checkpoint(_folder(tmp_path / "m", files, index, config))


def test_a_missing_folder_and_deep_nonsense_are_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: No such file"):
        read_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON"):
        read_checkpoint(tmp_path)


def test_an_id_is_found_in_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    assert local_folder("org/model") is None
    model = tmp_path / "hub" / "models--org--model"
    snapshot = _folder(model / "snapshots" / "abc", {"model.safetensors": 1})
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc\n")
    assert local_folder("org/model") == snapshot
    assert local_folder(str(tmp_path)) == tmp_path
