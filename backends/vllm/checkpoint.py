"""A checkpoint in the Hugging Face layout: what its small files say of its size. Reads no weights, asks no network.

Files are untrusted: each is read up to a bound. Neighbour: shape.py (makes sense of config.json).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backends.shape import ModelShape
from backends.vllm.shape import CheckpointError, shape_of

_MAX_JSON_BYTES = 64 * 1024 * 1024
_MAX_FILES = 4096
_INDEX = "model.safetensors.index.json"


def read_checkpoint(folder: Path, dtype: str = "auto") -> ModelShape:
    """The sizes of the model in `folder`, loaded as `dtype`. Raises CheckpointError, which names it."""
    try:
        config = _json(folder / "config.json")
        return shape_of(config, _weight_bytes(folder), dtype)
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{error.filename or folder}: {error.strerror or error}") from error


def local_folder(source: str) -> Path | None:
    """Where the checkpoint is on this machine: a folder, or what the hub's cache has of an id. None: it has to be
    downloaded first."""
    folder = Path(source)
    if folder.is_absolute() or folder.is_dir():
        return folder
    hub = (
        os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface").expanduser() / "hub"
    )
    model = Path(hub) / f"models--{source.replace('/', '--')}"
    try:
        snapshot = model / "snapshots" / (model / "refs" / "main").read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return snapshot if (snapshot / "config.json").exists() else None


def _json(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        raw = stream.read(_MAX_JSON_BYTES + 1)
    if len(raw) > _MAX_JSON_BYTES:
        raise CheckpointError(f"{file.name} is larger than {_MAX_JSON_BYTES} bytes")
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file.name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{file.name} holds no object")
    return found


def _weight_bytes(folder: Path) -> int:
    """Of the files that vLLM would load. Their sizes and not the index's sum: that one is often wrong, or missing."""
    files = sorted(set(_shards(folder)))
    if not files:
        raise CheckpointError("it has no .safetensors files")
    if len(files) > _MAX_FILES:
        raise CheckpointError(f"it has {len(files)} files of weights")
    return sum((folder / name).stat().st_size for name in files)


def _shards(folder: Path) -> Iterator[str]:
    if (folder / _INDEX).exists():
        listed = _json(folder / _INDEX).get("weight_map")
        for name in listed.values() if isinstance(listed, dict) else ():
            if not isinstance(name, str) or "/" in name:
                raise CheckpointError(f"{_INDEX} names the file {name!r}")
            yield name
        return
    names = [path.name for path in folder.glob("*.safetensors")]
    # Mistral's own layout comes beside the usual one: the same weights a second time.
    usual = [name for name in names if not name.startswith("consolidated")]
    yield from usual or names
