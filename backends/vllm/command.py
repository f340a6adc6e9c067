"""From the settings of a model to vLLM's command line and environment. Typed values in, argv out; no shell sees it.

Neighbours: config/vllm.py (the settings), environment.py (whose interpreter), guard.py (what runs it).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from backends.claim import vllm_claim
from backends.hardware import detect_host
from backends.launch import EnginePlan
from backends.selection import VLLM
from backends.vllm import guard
from backends.vllm.demo import demo_folder
from backends.vllm.environment import default_folder, default_interpreter, installed
from backends.vllm.fit import MOST_CPU_CACHE_BYTES
from config.schema import ModelSettings
from config.tree import DEMO_SOURCE
from config.vllm import VllmSettings

# The gateway has drained before it stops an engine; whatever is still being computed then gets this long.
SHUTDOWN_SECONDS = 5
_MODULE = "vllm.entrypoints.openai.api_server"


def engine_plan(model: ModelSettings, settings: VllmSettings) -> EnginePlan:
    """vLLM for `model`, launched here. It answers to the name and all aliases."""
    source = settings.source
    if source is None:
        raise AssertionError("the caller asks for a source")
    names = (model.name, *model.aliases)

    def command(socket_path: str) -> Sequence[str]:
        place = str(demo_folder()) if source == DEMO_SOURCE else source
        return argv(settings, place, uds=socket_path, names=names, context_tokens=model.context_tokens)

    name, idle, claim = f"{model.name}/{VLLM}", settings.idle_stop_seconds, partial(vllm_claim, model)
    return EnginePlan(VLLM, name, command, names, environment(settings), idle, claim, _sleeps(settings))


def argv(
    settings: VllmSettings, model: str, *, uds: str, names: Sequence[str], context_tokens: int | None = None
) -> list[str]:
    """vLLM on `model` (a folder or an id), answering to `names` on the Unix socket `uds`, under the guard that ends it
    with the process that holds its stdin. Raises EngineStartFailed where there is no vLLM."""
    command = [sys.executable, "-I", "-S", guard.__file__, uds, *_launcher(settings, model)]
    command += ["--served-model-name", *names, "--uds", uds]
    command += ["--max-model-len", "auto" if context_tokens is None else str(context_tokens)]
    return [*command, *_fixed(), *_options(settings), *_further(settings.args)]


def environment(settings: VllmSettings) -> dict[str, str]:
    """Variables of the engine, besides those of this process."""
    found = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    if settings.source == DEMO_SOURCE or Path(settings.source or "").is_absolute():
        # Nothing is missing in a folder; asking the hub would only make the start depend on the network.
        found |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if _sleeps(settings):
        # Its endpoints for sleep and wake are among those for development. They are on the private socket, as all are.
        found |= {"VLLM_SERVER_DEV_MODE": "1"}
    return found | settings.environment


def _launcher(settings: VllmSettings, model: str) -> list[str]:
    if settings.command is not None:
        return [*settings.command, model]
    # The module and not the `vllm` command: the builds for CPUs have none that works.
    return [settings.python or default_interpreter(), "-P", "-m", _MODULE, "--model", model]


def _fixed() -> Iterator[str]:
    yield from ("--shutdown-timeout", str(SHUTDOWN_SECONDS))
    # The gateway writes the access log, and its usage shows what was cached, as it does for the GGUF engine.
    yield from ("--disable-uvicorn-access-log", "--disable-fastapi-docs", "--enable-prompt-tokens-details")


def _options(settings: VllmSettings) -> Iterator[str]:
    for name, count in (
        ("tensor", 1 if settings.tensor_parallel == "auto" else settings.tensor_parallel),
        ("pipeline", settings.pipeline_parallel),
        ("data", settings.data_parallel),
    ):
        if count != 1:
            yield f"--{name}-parallel-size={count}"
    values: dict[str, object] = {
        "dtype": settings.dtype,
        "max-num-seqs": settings.max_sequences,
        "max-num-queued-reqs": settings.max_queued,
        "gpu-memory-utilization": settings.memory_share,
        "kv-cache-memory-bytes": _kv_cache_bytes(settings),
        "quantization": settings.quantization,
        "reasoning-parser": settings.reasoning_parser,
        "speculative-config": None if settings.speculative is None else json.dumps(settings.speculative),
        "tool-call-parser": settings.tool_parser,
    }
    yield from (f"--{name}={value}" for name, value in values.items() if value is not None)
    if settings.tool_parser is not None:
        yield "--enable-auto-tool-choice"
    if _sleeps(settings):
        yield "--enable-sleep-mode"
    yield "--enable-prefix-caching" if settings.prefix_caching else "--no-enable-prefix-caching"


def _kv_cache_bytes(settings: VllmSettings) -> int | None:
    """On a CPU vLLM would take nearly all memory there is, and fail where somebody else uses some of it."""
    if settings.kv_cache_bytes is not None or settings.memory_share is not None or not _on_cpu(settings):
        return settings.kv_cache_bytes
    return min(detect_host().available_ram_bytes // 4, MOST_CPU_CACHE_BYTES)


def launched_on_cpu(settings: VllmSettings) -> bool:
    """Whether this is a vLLM that is launched here and computes on the machine's processor, as far as can be known."""
    return settings.source is not None and _on_cpu(settings)


def _on_cpu(settings: VllmSettings) -> bool:
    """As far as can be known: what is behind an interpreter or a command of the user's, only the user knows."""
    found = installed(default_folder()) if settings.python is None and settings.command is None else None
    return found is not None and found.device == "cpu"


def _sleeps(settings: VllmSettings) -> bool:
    """vLLM for CPUs refuses the option."""
    return settings.sleep_mode and not _on_cpu(settings)


def _further(args: Mapping[str, Any]) -> Iterator[str]:
    for name, value in args.items():
        match value:
            case None:
                continue
            case bool():
                yield f"--{name}" if value else f"--no-{name}"
            case list():
                yield from (f"--{name}", *(_text(item) for item in value))
            case _:
                yield f"--{name}={_text(value)}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
