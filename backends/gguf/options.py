"""How large an engine is, and what it takes when nobody says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backends import hardware
from backends.fit import GGUF_MOST_PARALLEL, gguf_parallel
from backends.shape import ModelShape


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """Sizes of one engine. `context_tokens` is what each request may use: prompt + answer."""

    path: Path
    parallel: int | None = None
    context_tokens: int | None = None
    threads: int | None = None
    max_waiting: int = 256
    batch_tokens: int = 512
    busy_batch_tokens: int = 256


def default_threads() -> int:
    """One core less than this process may use: the gateway needs one, and ggml's spinning barriers collapse when two
    compute threads share a core."""
    return max(hardware.detect_host().usable_cores - 1, 1)


def min_copy_tokens(slot_bytes: int, n_params: int) -> int:
    """From how many shared tokens on a copy of a slot is cheaper than computing them again: at about 5 GB/s for the one
    and 2 x n_params operations a token at 50 GFLOP/s for the other, which on a GPU grow together."""
    return max(4, -(-5 * slot_bytes // n_params))


def default_parallel(shape: ModelShape | None, context_tokens: int, slot_bytes: int) -> int:
    """Slots whose caches fit into a quarter of the memory available now, and with the whole model into all of it: a
    power of two from 1 to 16. Without a shape the weights are not counted."""
    available_bytes = hardware.detect_host().available_ram_bytes
    if shape is not None:
        return gguf_parallel(shape, available_bytes, context_tokens)
    fitting = max(available_bytes // 4 // max(slot_bytes, 1), 1)
    return int(min(GGUF_MOST_PARALLEL, 1 << (fitting.bit_length() - 1)))
