"""Looks at what a choice of engines depends on: the machine, vLLM's environment, the sizes of the models' files.

Neighbours: selection.py (chooses by it), hardware.py, gguf/shape.py and vllm/checkpoint.py (look).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from backends.gguf.demo import DEMO_MODEL_PATH
from backends.gguf.header import GgufError
from backends.gguf.shape import read_shape
from backends.hardware import Hardware
from backends.selection import GGUF, VLLM, Surroundings
from backends.shape import ModelShape
from backends.vllm.checkpoint import local_folder, read_checkpoint
from backends.vllm.environment import default_folder, installed
from backends.vllm.shape import CheckpointError
from config.schema import GgufSettings, Settings
from config.tree import DEMO_SOURCE
from config.vllm import VllmSettings


def survey(settings: Settings, machine: Callable[[], Hardware]) -> Surroundings | None:
    """What `select` has to know; None where nothing depends on it, and then nobody has looked. `machine` is asked at
    most once."""
    launched = any(model.vllm is not None and model.vllm.source is not None for model in settings.models)
    if settings.profile == "dev" or not launched:
        return None
    found = {model.name: shape for model in settings.models for shape in _checkpoint(model.vllm)}
    shapes = {(name, VLLM): shape for name, shape in found.items()}
    return Surroundings(machine(), installed(default_folder()) is not None, shapes)


def full_survey(settings: Settings, hardware: Hardware) -> Surroundings:
    """All there is to know of every artifact that is launched here."""
    found: dict[tuple[str, str], ModelShape | str] = {}
    for model in settings.models:
        for kind, shapes in ((GGUF, _gguf(model.gguf)), (VLLM, _checkpoint(model.vllm))):
            for shape in shapes:
                found[model.name, kind] = shape
    return Surroundings(hardware, installed(default_folder()) is not None, found)


def _gguf(settings: GgufSettings | None) -> Iterator[ModelShape | str]:
    if settings is not None and settings.source is not None:
        yield gguf_shape(settings.source)


def gguf_shape(source: str) -> ModelShape | str:
    """The sizes of a GGUF model, or why they are not known."""
    return _shape_of(DEMO_MODEL_PATH if source == DEMO_SOURCE else Path(source))


def _shape_of(file: Path) -> ModelShape | str:
    try:
        return read_shape(file)
    except GgufError as error:
        return str(error)


def _checkpoint(settings: VllmSettings | None) -> Iterator[ModelShape | str]:
    if settings is not None and settings.source is not None:
        yield checkpoint_shape(settings)


def checkpoint_shape(settings: VllmSettings) -> ModelShape | str:
    """The sizes of what a vLLM with `settings` loads, or why they are not known."""
    source = settings.source or ""
    if source == DEMO_SOURCE:
        # The export holds the same weights in the same type, and may not have been made yet.
        return _shape_of(DEMO_MODEL_PATH)
    folder = local_folder(source)
    if folder is None:
        return f"{source} is not on this machine yet"
    try:
        return read_checkpoint(folder, settings.dtype)
    except CheckpointError as error:
        return str(error)
