"""What an engine takes of which memory once it is loaded, by fit.py and the sizes of its model's files.

Neighbours: factory.py and vllm/command.py (put this into plans), room.py (weighs claims), survey.py (reads files).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from backends.fit import MEMORY, NOTHING, Claim, gguf_fit
from backends.hardware import Hardware
from backends.shape import ModelShape
from backends.survey import checkpoint_shape, gguf_shape
from backends.vllm.fit import SHARE, gpus_for, vllm_fit
from config.schema import ModelSettings


def gguf_claim(model: ModelSettings, hardware: Hardware) -> Claim:
    """Of our GGUF engine for `model`. Reads the file's header."""
    gguf = model.gguf
    shape = gguf_shape(gguf.source) if gguf is not None and gguf.source is not None else None
    if gguf is None or not isinstance(shape, ModelShape):
        return NOTHING
    parallel = None if gguf.parallel == "auto" else gguf.parallel
    needs = gguf_fit(shape, hardware.available_ram_bytes, model.context_tokens, parallel).needs
    return Claim({MEMORY: needs.total_bytes}, needs.weight_bytes)


def vllm_claim(model: ModelSettings, hardware: Hardware) -> Claim:
    """Of a vLLM that is launched here for `model`: on a CPU what it needs, on GPUs its whole share of each, unless
    `kv_cache_bytes` says how much. Reads the checkpoint's small files."""
    settings = model.vllm
    shape = checkpoint_shape(settings) if settings is not None else None
    if settings is None:
        return NOTHING
    fit = vllm_fit(shape, settings, hardware, model.context_tokens) if isinstance(shape, ModelShape) else None
    gpus = gpus_for(settings, hardware)
    if not gpus:
        return NOTHING if fit is None else Claim({MEMORY: fit.needs.total_bytes})
    parts = 1 if settings.tensor_parallel == "auto" else settings.tensor_parallel
    count = fit.gpus if fit else parts * settings.pipeline_parallel * settings.data_parallel
    sizes: dict[str, int] = {}
    for gpu in gpus[:count]:
        # One without memory of its own shares the machine's.
        place, total = (
            (gpu.uuid or gpu.name, gpu.total_bytes) if gpu.total_bytes else (MEMORY, hardware.total_ram_bytes)
        )
        share = int((settings.memory_share or SHARE) * total)
        sizes[place] = fit.needs.total_bytes if fit and settings.kv_cache_bytes else share
    return Claim(sizes)


def loaded_claim(claim: Claim, pid: int | None) -> Claim:
    """`claim` of an engine that is loaded, as process `pid`. Of what could go unseen, that has not which the process
    has as memory of its own: llama.cpp copies the weights of some types into another order, and leaves others mapped.
    """
    if not claim.unseen or pid is None:
        return claim
    mapped = max(claim.sizes.get(MEMORY, 0) - _own_bytes(pid), 0)
    return replace(claim, unseen=min(claim.unseen, mapped))


def _own_bytes(pid: int) -> int:
    """0 where nobody can tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return 0
    found = next((line.split()[1] for line in lines if line.startswith("RssAnon:")), "0")
    return 1024 * int(found)


def free_memory(hardware: Hardware) -> Mapping[str, int]:
    """What is free now, in bytes by place."""
    return {gpu.uuid or gpu.name: gpu.free_bytes for gpu in hardware.gpus.devices} | {
        MEMORY: hardware.available_ram_bytes
    }
