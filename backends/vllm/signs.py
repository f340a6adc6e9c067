"""What lines of vLLM's output mean: how far it has loaded, and why it will not come up. Tables, read top down. Pure.

vLLM dies with a traceback of each of its processes, a hundred lines that end in "see root cause above"; the cause is in
the middle of them. Its texts are those of 0.32 and 0.33.
Neighbours: output.py (who asks, and what a Sign is), docs/vllm.md (the same causes for people).
"""

from __future__ import annotations

import re
from collections.abc import Callable

from backends.output import Sign

# "(EngineCore pid=12) ERROR 11-20 12:00:00 [core.py:99] ", in front of what is said.
_PREFIX = re.compile(r"^(?:\([^()]* pid=\d+\) ?)?(?:(?:ERROR|WARNING|INFO|DEBUG|CRITICAL) [\d: -]+ \[[^\]]*\] ?)?")

_PROGRESS: tuple[tuple[re.Pattern[str], Callable[[re.Match[str]], float]], ...] = tuple(
    (re.compile(pattern), share)
    for pattern, share in (
        (r"non-default args", lambda _: 0.05),
        (r"Initializing a V1 LLM engine", lambda _: 0.1),
        (r"Starting to load model", lambda _: 0.15),
        (r"Loading safetensors checkpoint shards: +(\d+)% Completed", lambda found: 0.15 + int(found[1]) / 100 * 0.45),
        (r"Loading weights took", lambda _: 0.6),
        (r"(?:GPU|CPU) KV cache size", lambda _: 0.7),
        (r"Capturing CUDA graphs.*?: +(\d+)%", lambda found: 0.75 + int(found[1]) / 100 * 0.2),
        (r"Warming up model for the compilation", lambda _: 0.75),
        (r"init engine .*took", lambda _: 0.95),
        (r"Starting vLLM server|Application startup complete", lambda _: 0.97),
    )
)

_MEMORY = "; set kv_cache_bytes or memory_share, or lower context_tokens"

# What is said, and how to say it: {line} is the line without its prefix, {0} what the pattern found.
_CAUSES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (
            r"(?:CUDA|HIP)(?: error:)? out of memory|OutOfMemoryError",
            "the GPU's memory is not enough: {line}; raise tensor_parallel, or lower memory_share or context_tokens",
        ),
        (
            r"Free memory on device|(?:is less than|less than) desired (?:GPU|CPU) memory utilization",
            "somebody else has the memory: {line}; lower memory_share, or set kv_cache_bytes",
        ),
        (r"Available memory on node .* less than requested memory for kv", "too little memory: {line}" + _MEMORY),
        (r"No available memory for the cache blocks", "too little memory for the KV cache" + _MEMORY),
        (r"KV cache is needed, which is larger than the available", "too little memory: {line}"),
        (r"Cannot auto-fit max_model_len", "too little memory for the KV cache" + _MEMORY),
        (r"Worker proc .* died unexpectedly", "one of its processes was killed: {line}"),
        (
            r"(?:MemoryError|Cannot allocate memory|DefaultCPUAllocator: can't allocate)",
            "this machine's memory is not enough: {line}",
        ),
        (r"Address already in use|Errno 98", "its address is taken: {line}"),
        (
            r"No module named '?vllm|No package metadata was found for vllm",
            "there is no vLLM in this environment; `upshift engine install vllm` makes one",
        ),
        (
            r"driver on your system is too old|CUDA driver version is insufficient|no kernel image is available"
            r"|libcud\w+\.so[.\d]*: cannot open|Failed to infer device type|No CUDA GPUs are available",
            "this vLLM does not fit the GPU or its driver: {line}",
        ),
        (
            r"OfflineModeIsEnabled|outgoing traffic has been disabled",
            "the model cannot be had: it is not in the hub's cache, and the hub is switched off (HF_HUB_OFFLINE)",
        ),
        (r"GatedRepoError", "the model cannot be had: the hub gives it only to those whom its owner lets (HF_TOKEN)"),
        (
            r"RepositoryNotFoundError",
            "the model cannot be had: the hub has none of this name, or a private one that wants a token (HF_TOKEN)",
        ),
        (
            r"(?:LocalEntryNotFound|HFValidation)Error"
            r"|is not a local folder and is not a valid model identifier|Invalid repository ID or local directory"
            r"|couldn't connect to .*huggingface",
            "the model cannot be had: {line}",
        ),
        (r"Error while deserializing|SafetensorError|InvalidHeader", "the model's weights are damaged: {line}"),
        (
            r"Model architectures \[.*\] are not supported|does not recognize this architecture"
            r"|There is no module or parameter named|size of tensor .* must match|Cannot find any model weights",
            "this model cannot be loaded: {line}",
        ),
        (
            r"max_model_len .*greater than the derived|User-specified max_model_len",
            "context_tokens is too much: {line}",
        ),
        (r"^(?:\S+: )?error: (?:unrecognized|argument|invalid)", "vLLM does not understand its options: {line}"),
    )
)
# The last line of a traceback, such as "ValueError: no such thing" or "pkg.errors.Bad: why".
_EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Failure|Invalid\w*): \S")
# Said when nothing else is: a process that was killed has no last words.
_DEAD = re.compile(r"EngineDeadError|EngineCore encountered an issue")
_EMPTY = re.compile(
    r"Engine core initialization failed|WorkerProc initialization failed|See root cause above|^\s*raise "
)


def vllm_sign(line: str) -> Sign | None:
    """What `line` says of the start that is under way, or of an end; None for nothing."""
    text = line[_PREFIX.match(line).end() :] if _PREFIX.match(line) else line  # type: ignore[union-attr]
    for pattern, share in _PROGRESS:
        if found := pattern.search(text):
            return Sign(progress=share(found))
    if _EMPTY.search(text):
        return None
    for pattern, said in _CAUSES:
        if pattern.search(text):
            return Sign(cause=said.format(line=_plain(text)), weight=2)
    if _DEAD.search(text):
        return Sign(cause="its engine core has ended")
    return Sign(cause=_plain(text)) if _EXCEPTION.match(text) else None


def _plain(text: str) -> str:
    """Without the exception's name where it says nothing, and without what only a debugger wants."""
    return re.sub(r"^(?:\w+\.)*(?:ValueError|RuntimeError|OSError|Exception): ", "", text).strip().rstrip(".")
