"""The engines that are compared: how each is started in its best configuration, asked, watched and stopped."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gguf import GGUFReader

from tests.benchmarks.bench_engine_build import ROOT, llama_cpp_server, llama_server
from tests.benchmarks.bench_engine_load import get
from tests.benchmarks.bench_engine_workload import CONTEXT_TOKENS, SLOTS

HOST = "127.0.0.1"
_START_TIMEOUT_SECONDS = 120
_STOP_TIMEOUT_SECONDS = 10
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Peer:
    """One engine. `command(model, port, threads)`; `asks` goes into every request; `ready_path` is 200 once it serves.

    `metrics` maps steps, generated, prompt and cached to names of its /metrics. `serial`: serves one request at a time.
    """

    name: str
    command: Callable[[Path, int, int], list[str]]
    asks: Callable[[Path], dict[str, Any]]
    ready_path: str = "/health"
    serial: bool = False
    metrics: Mapping[str, str] = field(default_factory=dict)


def _ours(model: Path, port: int, threads: int) -> list[str]:
    sizes = ["--parallel", str(SLOTS), "--context-tokens", str(CONTEXT_TOKENS), "--threads", str(threads)]
    address = ["--host", HOST, "--port", str(port), "--name", "bench"]
    return [sys.executable, "-m", "gateway.cli", "engine", str(model), *address, *sizes]


def _llama_server_default(model: Path, port: int, threads: int) -> list[str]:
    sizes = ["--parallel", str(SLOTS), "--ctx-size", str(SLOTS * CONTEXT_TOKENS), "--no-kv-unified"]
    compute = ["--threads", str(threads), "--threads-batch", str(threads)]
    address = ["--host", HOST, "--port", str(port), "--alias", "bench", "--metrics"]
    return [str(llama_server()), "--model", str(model), *address, *sizes, *compute]


def _llama_server_best(model: Path, port: int, threads: int) -> list[str]:
    # Of the options tried, the two that cost it least: no copies of ended slots into its RAM cache (prompts here share
    # nothing), and its built-in ChatML instead of the model's Jinja template (a sixth less CPU a token; same prompts).
    return [*_llama_server_default(model, port, threads), "--cache-ram", "0", "--no-jinja"]


def _llama_cpp_server(model: Path, port: int, threads: int) -> list[str]:
    # Its default of logits_all computes the output layer for every prompt token.
    options = {
        "model": model,
        "model_alias": "bench",
        "host": HOST,
        "port": port,
        "n_ctx": CONTEXT_TOKENS,
        "n_threads": threads,
        "n_threads_batch": threads,
        "logits_all": "false",
        "interrupt_requests": "false",
        "verbose": "false",
    }
    flags = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [str(llama_cpp_server()), "-m", "llama_cpp.server", *flags]


def _ask_with_usage(_model: Path) -> dict[str, Any]:
    return {"stream_options": {"include_usage": True}, "ignore_eos": True}


def _ask_llama_cpp_server(model: Path) -> dict[str, Any]:
    """It knows no ignore_eos and penalises repetition unless told not to."""
    return {"logit_bias": {str(_eos_token(model)): -100}, "repeat_penalty": 1.0}


def _eos_token(model: Path) -> int:
    value = GGUFReader(model).get_field("tokenizer.ggml.eos_token_id")
    if value is None:
        sys.exit(f"bench-engine: {model} names no eos token")
    return int(value.contents())


_LLAMA_SERVER_METRICS = {
    "steps": "llamacpp:n_decode_total",
    "generated": "llamacpp:tokens_predicted_total",
    "prompt": "llamacpp:prompt_tokens_total",  # computed ones alone
}
PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "ours",
            _ours,
            _ask_with_usage,
            metrics={
                "steps": "upshift_engine_steps_total",
                "generated": "upshift_engine_generation_tokens_total",
                "prompt": "upshift_engine_prompt_tokens_total",
                "cached": "upshift_engine_prefix_cache_hits_total",
            },
        ),
        Peer("llama-server", _llama_server_best, _ask_with_usage, metrics=_LLAMA_SERVER_METRICS),
        Peer("llama-server-default", _llama_server_default, _ask_with_usage, metrics=_LLAMA_SERVER_METRICS),
        Peer("llama_cpp.server", _llama_cpp_server, _ask_llama_cpp_server, ready_path="/v1/models", serial=True),
    )
}


class Server:
    """A running engine, alone on the machine: `async with Server(...)`. Exits with its last words where it fails."""

    def __init__(self, peer: Peer, model: Path, *, threads: int, cores: frozenset[int]) -> None:
        self.peer = peer
        self.port = _free_port()
        self.start_seconds = 0.0
        self._command = peer.command(model, self.port, threads)
        self._cores = cores
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in __aexit__

    async def __aenter__(self) -> Self:
        started = time.perf_counter()
        self._process = self._spawn()
        try:
            async with asyncio.timeout(_START_TIMEOUT_SECONDS):
                while (await get(HOST, self.port, self.peer.ready_path)).status != 200:
                    if self._process.poll() is not None:
                        sys.exit(f"bench-engine: {self.peer.name} did not start\n{self.last_words()}")
                    await asyncio.sleep(0.02)
        except BaseException:
            await self.__aexit__(None, None, None)
            raise
        self.start_seconds = time.perf_counter() - started
        return self

    def _spawn(self) -> subprocess.Popen[bytes]:
        own_cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self._cores)  # inherited by the child
        try:
            return subprocess.Popen(
                self._command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
            )
        finally:
            os.sched_setaffinity(0, own_cores)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            await asyncio.to_thread(self._process.wait, _STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def last_words(self) -> str:
        self._log.seek(0)
        return self._log.read()[-2000:].decode("utf-8", "replace")

    def resident_bytes(self) -> int:
        """Everything mapped and present, the model's file included. Linux."""
        pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def cpu_seconds(self) -> float:
        """User and system time of all its threads."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND

    async def counters(self) -> dict[str, float]:
        """The totals named in `Peer.metrics` so far; empty for an engine without metrics."""
        if not self.peer.metrics:
            return {}
        text = (await get(HOST, self.port, "/metrics")).body.decode()
        found = {}
        for key, name in self.peer.metrics.items():
            match = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
            found[key] = float(match[1]) if match else 0.0
        return found


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return int(listener.getsockname()[1])
