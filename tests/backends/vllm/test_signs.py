"""Lines as vLLM 0.32 prints them, and what they are taken for."""

from __future__ import annotations

import pytest

from backends.output import cause
from backends.vllm.signs import vllm_sign

WORKER = "(Worker pid=21145) ERROR 11-21 17:43:56 [multiproc_executor.py:953] "
ENGINE = "(EngineCore pid=4289) ERROR 11-21 17:31:31 [core.py:1240] "

# What stands around every cause: the tracebacks of three processes.
NOISE_BEFORE = [
    "(APIServer pid=3706) WARNING 11-21 17:25:56 [system_utils.py:255] Found ulimit of 20000 and failed to "
    "automatically increase. This can cause fd limit errors like `OSError: [Errno 24] Too many open files`.",
    "(EngineCore pid=4289) WARNING 11-21 17:31:32 [cpu.py:224] Triton is not installed. triton-cpu is expected on x86.",
    ENGINE + "EngineCore failed to start.",
    ENGINE + "Traceback (most recent call last):",
    ENGINE + '  File "/x/vllm/v1/engine/core.py", line 1231, in run_engine_core',
    ENGINE + "    raise ValueError(",
]
NOISE_AFTER = [
    ENGINE + "RuntimeError: WorkerProc initialization failed due to an exception in a background process.",
    "(APIServer pid=3706) Traceback (most recent call last):",
    "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}",
]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        pytest.param(
            WORKER + "RuntimeError: Cannot find any model weights with `/models/m`",
            "this model cannot be loaded: Cannot find any model weights with `/models/m`",
            id="no-weights",
        ),
        pytest.param(
            "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for "
            "the root cause.",
            "its engine core has ended",
            id="engine-core-killed",
        ),
        pytest.param(
            WORKER + "safetensors_rust.SafetensorError: Error while deserializing header: incomplete metadata",
            "the model's weights are damaged: safetensors_rust.SafetensorError: Error while deserializing header: "
            "incomplete metadata",
            id="damaged",
        ),
        pytest.param(
            "  Value error, Invalid repository ID or local directory specified: '/models/none'",
            "the model cannot be had: Value error, Invalid repository ID or local directory specified: '/models/none'",
            id="no-model",
        ),
        pytest.param(
            "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find the requested files in the disk cache",
            "the model cannot be had: huggingface_hub.errors.LocalEntryNotFoundError: Cannot find the requested files "
            "in the disk cache",
            id="not-on-the-hub",
        ),
        pytest.param(
            "huggingface_hub.errors.LocalEntryNotFoundError: Cannot find an appropriate cached snapshot folder for the "
            "specified revision on the local disk and outgoing traffic has been disabled. To enable repo look-ups and "
            "downloads online, pass 'local_files_only=False' as input.",
            "the model cannot be had: it is not in the hub's cache, and the hub is switched off (HF_HUB_OFFLINE)",
            id="offline",
        ),
        pytest.param(
            ENGINE + "huggingface_hub.errors.GatedRepoError: 403 Client Error. (Request ID: Root=1-6)",
            "the model cannot be had: the hub gives it only to those whom its owner lets (HF_TOKEN)",
            id="gated",
        ),
        pytest.param(
            "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. (Request ID: Root=1-6)",
            "the model cannot be had: the hub has none of this name, or a private one that wants a token (HF_TOKEN)",
            id="no-such-id",
        ),
        pytest.param(
            ENGINE + "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
            "the GPU's memory is not enough: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB; "
            "raise tensor_parallel, or lower memory_share or context_tokens",
            id="gpu-memory",
        ),
        pytest.param(
            ENGINE + "ValueError: Free memory on device cuda:0 (3.1/79.1 GiB) on startup is less than desired GPU "
            "memory utilization (0.92, 72.8 GiB).",
            "somebody else has the memory: Free memory on device cuda:0 (3.1/79.1 GiB) on startup is less than desired "
            "GPU memory utilization (0.92, 72.8 GiB); lower memory_share, or set kv_cache_bytes",
            id="taken-memory",
        ),
        pytest.param(
            WORKER + "ValueError: Available memory on node 0 (20.1/23.5 GiB) on kv cache allocation is less than "
            "requested memory for kv (25.0 GiB). Decrease --kv-cache-memory-bytes",
            "too little memory: Available memory on node 0 (20.1/23.5 GiB) on kv cache allocation is less than "
            "requested memory for kv (25.0 GiB). Decrease --kv-cache-memory-bytes; set kv_cache_bytes or memory_share, "
            "or lower context_tokens",
            id="cpu-memory",
        ),
        pytest.param(
            ENGINE + "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
            "too little memory for the KV cache; set kv_cache_bytes or memory_share, or lower context_tokens",
            id="no-cache",
        ),
        pytest.param(
            "OSError: [Errno 98] Address already in use",
            "its address is taken: [Errno 98] Address already in use",
            id="address",
        ),
        pytest.param(
            "/srv/env/bin/python: Error while finding module specification for 'vllm.entrypoints.openai.api_server' "
            "(ModuleNotFoundError: No module named 'vllm')",
            "there is no vLLM in this environment; `upshift engine install vllm` makes one",
            id="no-vllm",
        ),
        pytest.param(
            ENGINE + "RuntimeError: The NVIDIA driver on your system is too old (found version 11040).",
            "this vLLM does not fit the GPU or its driver: The NVIDIA driver on your system is too old (found version "
            "11040)",
            id="driver",
        ),
        pytest.param(
            "api_server.py: error: unrecognized arguments: --no-such-option",
            "vLLM does not understand its options: api_server.py: error: unrecognized arguments: --no-such-option",
            id="options",
        ),
        pytest.param(
            "KeyError: 'invalid tool call parser: nosuch (chose from { hermes })'",
            "KeyError: 'invalid tool call parser: nosuch (chose from { hermes })'",
            id="unknown-to-the-table",
        ),
    ],
)
def test_cause_is_found_among_the_tracebacks(line: str, said: str) -> None:
    assert cause(1, [*NOISE_BEFORE, line, *NOISE_AFTER], vllm_sign) == said


def test_without_a_cause_the_last_line_is_all_there_is() -> None:
    assert cause(-9, NOISE_BEFORE[:2], vllm_sign) == "ended by SIGKILL; if nobody killed it, memory ran out"
    assert cause(3, ["odd"], vllm_sign) == "ended with exit code 3: odd"


def test_progress_only_rises_along_a_start() -> None:
    lines = [
        "(APIServer pid=1) INFO 11-21 17:25:56 [api_utils.py:286] non-default args: {'uds': '/x'}",
        "(EngineCore pid=2) INFO 11-21 17:28:27 [core.py:102] Initializing a V1 LLM engine (v0.32.0) with config",
        "(Worker pid=3) INFO 11-21 17:29:31 [cpu_model_runner.py:68] Starting to load model /m...",
        "(Worker pid=3) Loading safetensors checkpoint shards:   0% Completed | 0/2 [00:00<?, ?it/s]",
        "(Worker pid=3) Loading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<00:00, 9.6it/s]",
        "(Worker pid=3) Loading safetensors checkpoint shards: 100% Completed | 2/2 [00:00<00:00, 9.6it/s]",
        "(Worker pid=3) INFO 11-21 17:29:40 [default_loader.py:502] Loading weights took 0.31 seconds",
        "(EngineCore pid=2) INFO 11-21 17:31:31 [kv_cache_utils.py:2327] CPU KV cache size: 139,776 tokens",
        "Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  10%|█         | 5/51",
        "(EngineCore pid=2) INFO 11-21 17:31:31 [core.py:402] init engine (profile, create kv cache) took 73.74 s",
        "(APIServer pid=1) INFO 11-21 17:31:33 [entry.py:140] Starting vLLM server on unix:/x",
    ]
    shown = [sign.progress for line in lines if (sign := vllm_sign(line)) is not None and sign.progress is not None]
    assert len(shown) == len(lines)
    assert shown == sorted(shown)
    assert 0 < shown[0] < shown[-1] < 1
