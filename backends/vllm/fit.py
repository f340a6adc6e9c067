"""How much memory vLLM needs for a model, on how many GPUs it fits, and what would make it fit. Pure.

vLLM takes its share of each GPU whole: weights, what it computes in, and a KV cache in all the rest. It starts where
one conversation of full length has room there. Neighbours: fit.py (what all engines have in common), config/vllm.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from backends.fit import GIB, MIB, Fit, Needs, gib, most
from backends.gpu import Gpu, visible
from backends.hardware import Hardware
from backends.shape import ModelShape
from config.vllm import VllmSettings

SHARE = 0.92  # vLLM's own --gpu-memory-utilization
MOST_CPU_CACHE_BYTES = 4 * GIB

# Beside weights and KV cache: CUDA's context, graphs and libraries; buffers between GPUs; three processes on a CPU.
_GPU_BYTES = 1434 * MIB
_PARALLEL_BYTES = 512 * MIB
_CPU_BYTES = 2 * GIB
_BLOCK = 16  # vLLM hands out its cache in blocks of so many tokens
_LEAST_CONTEXT = 2048  # less is no use to anybody; vLLM would make do with it where no length is asked for
_MOST_GPUS = 64
_ROOMY_TOKENS = 65_536  # sixteen conversations of 4,096

# Bytes of a weight that is stored as it is, and what vLLM can make of such weights while it loads them: one byte. Layer
# by layer, so that they need not fit before (its pages on online quantization and on FP8, of 0.32).
_PLAIN = {"bfloat16": 2, "float16": 2, "float32": 4}
_ONLINE = ("fp8", "int8")
_FP8 = "fp8_per_tensor"  # "fp8" is the same, and deprecated
_FP8_ARCHITECTURES = frozenset({"gfx942", "gfx950", "gfx1200", "gfx1201"})
_FOUR_BITS = 0.54  # of a byte, with the scales: groups of 128

# What the pinned vLLM has kernels for (its installation page). Those of NVIDIA all take FP8 weights: from 8.9 on they
# compute with them, the older ones unpack them.
_LEAST_CAPABILITY = (7, 5)
_ARCHITECTURES = frozenset(
    {"gfx90a", "gfx942", "gfx950", "gfx1100", "gfx1101", "gfx1150", "gfx1151", "gfx1200", "gfx1201"}
)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a plan is tried: on `gpus` in parallel groups of which each has `tensor` x `pipeline`; 0 is the CPU."""

    tensor: int
    pipeline: int
    memory_bytes: int  # of one GPU, whole

    @property
    def parts(self) -> int:
        return max(self.tensor * self.pipeline, 1)


def usable_gpus(gpus: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Those that vLLM runs on, all of one kind: it cuts a model into equal parts. The kind with the most memory. Of MIG
    instances a program sees one."""
    kinds: dict[tuple[str, int], list[Gpu]] = {}
    for gpu in gpus:
        if _runs_on(gpu):
            kinds.setdefault((gpu.name, gpu.total_bytes), []).append(gpu)
    best = max(kinds.values(), key=lambda kind: sum(gpu.total_bytes for gpu in kind), default=[])
    return tuple(best[:1] if best and best[0].uuid.startswith("MIG-") else best)


def gpus_for(settings: VllmSettings, hardware: Hardware) -> tuple[Gpu, ...]:
    """Those that a vLLM with `settings` would use: its own environment may leave it fewer."""
    return usable_gpus(visible(hardware.gpus.devices, settings.environment))


def _runs_on(gpu: Gpu) -> bool:
    if gpu.vendor == "amd":
        return gpu.capability in _ARCHITECTURES
    return tuple(map(int, gpu.capability.split("."))) >= _LEAST_CAPABILITY


def vllm_fit(shape: ModelShape, settings: VllmSettings, hardware: Hardware, context_tokens: int | None) -> Fit:
    """vLLM with `settings` on this machine: on its GPUs where it has any that vLLM runs on, else on the CPU.

    `tensor_parallel: auto` becomes the fewest GPUs on which the model fits with room for 65,536 tokens of
    conversations; where there are not so many, all of them. None for the context is as much of what the model was
    trained for as fits.
    """
    shape = _as_loaded(shape, settings)
    gpus = gpus_for(settings, hardware)
    if not gpus:
        return _cpu_fit(shape, settings, hardware.available_ram_bytes, context_tokens)
    # A GPU that shares the machine's memory has as much as there is.
    memory_bytes = gpus[0].total_bytes or hardware.total_ram_bytes
    places = [
        _Place(tensor, settings.pipeline_parallel, memory_bytes) for tensor in _tensors(shape, settings, len(gpus))
    ]
    fits = [_gpu_fit(shape, settings, place, context_tokens) for place in places]
    chosen = next((fit for fit in fits if fit.fits and _is_roomy(fit, settings)), None)
    chosen = chosen or next((fit for fit in reversed(fits) if fit.fits), fits[-1])
    count = chosen.gpus * settings.data_parallel
    if count > len(gpus):
        lacking = (f"{count} GPUs: there {'is' if len(gpus) == 1 else 'are'} {len(gpus)}",)
        return replace(chosen, gpus=count, available_bytes=0, changes=lacking)
    if chosen.fits:
        return replace(chosen, gpus=count)
    return replace(chosen, gpus=count, changes=tuple(_changes(shape, settings, chosen, gpus, memory_bytes)))


def _as_loaded(shape: ModelShape, settings: VllmSettings) -> ModelShape:
    """With what the settings make smaller: weights that are quantized while they are loaded, a cache in 8 bits."""
    kv_type = str(settings.args.get("kv-cache-dtype", "auto"))
    if kv_type.startswith("fp8"):
        shape = replace(shape, element_bytes=1)
    if settings.quantization is not None and settings.quantization.startswith(_ONLINE):
        shape = _quantized(shape, settings.quantization)
    return shape


def _quantized(shape: ModelShape, name: str, weight_size: float = 1.0) -> ModelShape:
    """With weights of `weight_size` bytes but for embeddings and output layer, which are left as they are."""
    stored = _PLAIN.get(shape.weights)
    if stored is None:
        return shape
    kept = stored * shape.vocabulary * shape.width * (1 if shape.tied else 2)
    kept = min(kept, shape.weight_bytes)
    return replace(shape, weights=name, weight_bytes=kept + int((shape.weight_bytes - kept) / stored * weight_size))


def _is_roomy(fit: Fit, settings: VllmSettings) -> bool:
    """Whether so many conversations have room that batching is worth it, or all that there may be."""
    most_tokens = (settings.max_sequences or _ROOMY_TOKENS) * fit.context_tokens
    return fit.parallel * fit.context_tokens >= min(_ROOMY_TOKENS, most_tokens)


def _tensors(shape: ModelShape, settings: VllmSettings, gpus: int) -> list[int]:
    """Over how many GPUs a layer may be cut, fewest first: heads have to come out even."""
    if settings.tensor_parallel != "auto":
        return [settings.tensor_parallel]
    most_gpus = gpus // (settings.pipeline_parallel * settings.data_parallel)
    return [count for count in _powers(most_gpus) if shape.heads % count == 0] or [1]


def _powers(bound: int) -> Iterator[int]:
    count = 1
    while count <= bound:
        yield count
        count *= 2


def _gpu_fit(shape: ModelShape, settings: VllmSettings, place: _Place, context_tokens: int | None) -> Fit:
    budget = int((settings.memory_share or SHARE) * place.memory_bytes)
    empty = _needs(shape, place, 0)
    room = settings.kv_cache_bytes or max(budget - empty.total_bytes, 0)
    context = context_tokens or _longest(shape, place, room)
    one = kv_bytes(shape, context, place.tensor) // place.pipeline
    return Fit(
        # An exact size is taken whole, whatever is in it.
        needs=replace(empty, kv_bytes=max(one, settings.kv_cache_bytes or 0)),
        available_bytes=budget if one <= room else min(budget, empty.total_bytes + room),
        context_tokens=context,
        parallel=min(room // max(one, 1), settings.max_sequences or _batch(place)[1]),
        gpus=place.parts,
    )


def _cpu_fit(shape: ModelShape, settings: VllmSettings, available_bytes: int, context_tokens: int | None) -> Fit:
    """On a CPU the size of the cache is fixed by command.py, for vLLM would take nearly all memory."""
    place = _Place(0, 1, 0)
    room = settings.kv_cache_bytes or min(available_bytes // 4, MOST_CPU_CACHE_BYTES)
    context = context_tokens or _longest(shape, place, room)
    one = kv_bytes(shape, context, 1)
    empty = _needs(shape, place, 0)
    fit = Fit(
        needs=replace(empty, kv_bytes=max(room, one)),
        available_bytes=available_bytes if one <= room else min(available_bytes, empty.total_bytes + room),
        context_tokens=context,
        parallel=min(room // max(one, 1), settings.max_sequences or _batch(place)[1]),
    )
    if fit.fits:
        return fit
    if one > room and empty.total_bytes + one <= available_bytes:
        return replace(fit, changes=(f"kv_cache_bytes: {one}", f"context_tokens: {_longest(shape, place, room)}"))
    if settings.kv_cache_bytes is not None and (less := _less_cache(fit)) >= one:
        return replace(fit, changes=(f"kv_cache_bytes: {less}",))
    rest = available_bytes - fit.needs.total_bytes + fit.needs.weight_bytes
    return replace(fit, changes=(f"a smaller model: at most {gib(rest)} of weights" if rest > 0 else "more memory",))


def _less_cache(fit: Fit) -> int:
    """What is left for a cache beside all else, in whole MiB."""
    return (fit.available_bytes - fit.needs.total_bytes + fit.needs.kv_bytes) // MIB * MIB


def _longest(shape: ModelShape, place: _Place, room: int) -> int:
    """The longest conversation that fits, in tokens, no longer than the model was trained for."""
    blocks = most(
        lambda count: kv_bytes(shape, count * _BLOCK, place.tensor) // place.pipeline <= room,
        shape.context_tokens // _BLOCK,
    )
    return max(blocks * _BLOCK, min(_LEAST_CONTEXT, shape.context_tokens))


def kv_bytes(shape: ModelShape, context_tokens: int, tensor: int) -> int:
    """Of one conversation on one of `tensor` GPUs. KV heads are cut no finer than one for each GPU; a layer with a
    window keeps the window alone."""
    found = 0
    for layer in shape.layers:
        tokens = min(context_tokens, layer.window or context_tokens)
        found += shape.element_bytes * layer.kv_elements * tokens // min(max(tensor, 1), layer.kv_heads)
        found += 4 * layer.state_elements // max(tensor, 1)
    return found


def _needs(shape: ModelShape, place: _Place, kv: int) -> Needs:
    tokens, rows = _batch(place)
    tensor = max(place.tensor, 1)
    scratch = 2 * tokens * (2 * shape.feed_forward // tensor + 4 * shape.width) + 8 * rows * shape.vocabulary
    process = _GPU_BYTES + (_PARALLEL_BYTES if place.parts > 1 else 0) if place.tensor else _CPU_BYTES
    return Needs(shape.weight_bytes // place.parts, kv, scratch, process)


def _batch(place: _Place) -> tuple[int, int]:
    """(tokens of a step, sequences): vLLM's defaults by the size of the GPU (engine/arg_utils.py)."""
    if place.memory_bytes >= 160 * GIB:
        return 16384, 1024
    if place.memory_bytes >= 70 * GIB:
        return 8192, 1024
    return 2048, 256 if place.tensor else 128


def _changes(
    shape: ModelShape, settings: VllmSettings, fit: Fit, gpus: Sequence[Gpu], memory_bytes: int
) -> Iterator[str]:
    """Each of these would do."""

    def fits(tensor: int, context: int | None, shape: ModelShape = shape) -> bool:
        return _gpu_fit(shape, settings, _Place(tensor, settings.pipeline_parallel, memory_bytes), context).fits

    here = fit.gpus // settings.pipeline_parallel
    enough = [count for count in _powers(_MOST_GPUS) if shape.heads % count == 0 and count > here]
    count = next((count for count in enough if fits(count, fit.context_tokens)), None)
    blocks = most(lambda number: fits(here, number * _BLOCK), fit.context_tokens // _BLOCK)
    if blocks * _BLOCK >= min(_LEAST_CONTEXT, shape.context_tokens):
        yield f"context_tokens: {blocks * _BLOCK}"
    if count is not None:
        all_gpus = count * settings.pipeline_parallel * settings.data_parallel
        yield f"tensor_parallel: {count}" if all_gpus <= len(gpus) else f"{all_gpus} GPUs of this kind"
    plain = settings.quantization is None and _PLAIN.get(shape.weights) == 2
    if plain and _takes_fp8(gpus[0]) and fits(here, fit.context_tokens, _quantized(shape, _FP8)):
        yield f"quantization: {_FP8}"
    if settings.kv_cache_bytes is not None and settings.kv_cache_bytes < fit.needs.kv_bytes:
        yield f"kv_cache_bytes: {fit.needs.kv_bytes}"
        return
    one = kv_bytes(shape, fit.context_tokens, here) // settings.pipeline_parallel
    if settings.kv_cache_bytes is not None and (less := _less_cache(fit)) >= one:
        yield f"kv_cache_bytes: {less}"
    rest = fit.available_bytes - fit.needs.total_bytes + fit.needs.weight_bytes
    rest *= here * settings.pipeline_parallel
    if rest > 0:
        four_bits = plain and _quantized(shape, "awq", _FOUR_BITS).weight_bytes <= rest
        what = "an AWQ or GPTQ checkpoint of 4 bits or a smaller checkpoint" if four_bits else "a smaller checkpoint"
        yield f"{what}: at most {gib(rest)} of weights"


def _takes_fp8(gpu: Gpu) -> bool:
    return gpu.vendor == "nvidia" or gpu.capability in _FP8_ARCHITECTURES
