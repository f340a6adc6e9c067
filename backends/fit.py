"""How much memory an engine needs for a model, and what would make it fit. Pure: sizes in, sizes and advice out.

Here what all engines have in common, and the GGUF engine. Neighbours: shape.py (the model's sizes), vllm/fit.py (the
other engine), selection.py (asks). The constants were measured; docs/hardware.md has the formulae and their errors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from backends.shape import ModelShape

MIB = 1024 * 1024
GIB = 1024 * MIB

# The GGUF engine (backends/gguf/runner.py, options.py): what it takes unasked.
GGUF_CONTEXT_TOKENS = 4096
GGUF_MOST_PARALLEL = 16
_GGUF_BATCH_TOKENS = 512
_GGUF_PROCESS_BYTES = 70 * MIB  # Python, uvicorn, libllama
_GGUF_TOKEN_BYTES = 350  # of each token of the vocabulary: its text, here and in llama.cpp
_CELLS = 256  # llama.cpp rounds a slot up to a multiple of it


@dataclass(frozen=True, slots=True)
class Needs:
    """Memory of one engine, or of one of its GPUs. `scratch_bytes` is what it computes in, `process_bytes` all else."""

    weight_bytes: int
    kv_bytes: int
    scratch_bytes: int
    process_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.weight_bytes + self.kv_bytes + self.scratch_bytes + self.process_bytes


# The machine's own memory as a place where engines are; the other places are GPUs, by their identifiers.
MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class Claim:
    """What an engine takes once it is loaded, in bytes by place; nothing where nobody can tell. `unseen` of the
    machine's memory counts as free even then: the weights of a GGUF are a mapped file."""

    sizes: Mapping[str, int] = field(default_factory=dict)
    unseen: int = 0


NOTHING = Claim()


@dataclass(frozen=True, slots=True)
class Fit:
    """One engine beside the memory there is for it: of the machine (`gpus` is 0), or of each of so many GPUs.

    `parallel` answers of `context_tokens` each have room at the same time. `changes` are settings and artifacts each of
    which would make it fit; empty where it does.
    """

    needs: Needs
    available_bytes: int
    context_tokens: int
    parallel: int
    gpus: int = 0
    changes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        return self.needs.total_bytes <= self.available_bytes


def gguf_needs(shape: ModelShape, context_tokens: int, parallel: int) -> Needs:
    """Of the GGUF engine, all in the machine's memory. Within a tenth of what it takes, or 15 MiB above it."""
    cells = -(-context_tokens // _CELLS) * _CELLS
    kv_elements = cells * sum(layer.kv_elements for layer in shape.layers)
    state_elements = sum(layer.state_elements for layer in shape.layers)
    # The widest moment of a batch: gate, up and their product beside the rows that go on; or the logits.
    rows = 4 * _GGUF_BATCH_TOKENS * (3 * shape.feed_forward + 4 * shape.width)
    logits = 4 * parallel * shape.vocabulary
    mask = 2 * _GGUF_BATCH_TOKENS * cells
    return Needs(
        weight_bytes=shape.weight_bytes,
        kv_bytes=parallel * (2 * kv_elements + 4 * state_elements),
        scratch_bytes=max(rows, logits) + mask + logits,
        process_bytes=_GGUF_PROCESS_BYTES + _GGUF_TOKEN_BYTES * shape.vocabulary,
    )


def gguf_fit(shape: ModelShape, available_bytes: int, context_tokens: int | None, parallel: int | None) -> Fit:
    """The GGUF engine in `available_bytes`; None for a size is what the engine chooses itself."""
    context = context_tokens or min(shape.context_tokens, GGUF_CONTEXT_TOKENS)
    slots = parallel or gguf_parallel(shape, available_bytes, context)
    fit = Fit(gguf_needs(shape, context, slots), available_bytes, context, slots)
    return fit if fit.fits else replace(fit, changes=tuple(_gguf_changes(shape, fit)))


def gguf_parallel(shape: ModelShape, available_bytes: int, context_tokens: int) -> int:
    """Slots of the GGUF engine where nobody says: a power of two from 1 to 16 whose caches fit into a quarter of the
    memory, and with everything else into all of it."""

    def fits(slots: int) -> bool:
        needs = gguf_needs(shape, context_tokens, slots)
        return needs.kv_bytes <= available_bytes // 4 and needs.total_bytes <= available_bytes

    slots = GGUF_MOST_PARALLEL
    while slots > 1 and not fits(slots):
        slots //= 2
    return slots


def _gguf_changes(shape: ModelShape, fit: Fit) -> Iterator[str]:
    def needs(context: int, slots: int) -> bool:
        return gguf_needs(shape, context, slots).total_bytes <= fit.available_bytes

    slots = most(lambda number: needs(fit.context_tokens, number), fit.parallel)
    if slots:
        yield f"parallel: {slots}"
    cells = most(lambda number: needs(number * _CELLS, fit.parallel), fit.context_tokens // _CELLS)
    if cells:
        yield f"context_tokens: {cells * _CELLS}"
    rest = fit.available_bytes - fit.needs.total_bytes + fit.needs.weight_bytes
    if rest > 0:
        yield f"a smaller quantization than {shape.weights}: at most {gib(rest)} of weights"
    if not slots and not cells and rest <= 0:
        yield "a smaller model"


def most(fits: Callable[[int], bool], bound: int) -> int:
    """The largest number from 1 to `bound` that `fits`, which holds up to some number and not beyond; else 0."""
    low, high = 0, bound
    while low < high:
        middle = (low + high + 1) // 2
        if fits(middle):
            low = middle
        else:
            high = middle - 1
    return low


def gib(n_bytes: int) -> str:
    """For people: one decimal, MiB below a tenth of a GiB."""
    return f"{n_bytes / GIB:.1f} GiB" if n_bytes >= GIB // 10 else f"{n_bytes / MIB:.0f} MiB"
