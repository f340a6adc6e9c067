"""How engines of each kind behave: how patient to be, what to ask, what their output means. Data, one entry per kind.

Neighbours: probe.py and output.py (what the entries are made of), process.py (goes by one).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from backends.http import HttpClient
from backends.output import Reader, gguf_sign
from backends.probe import gguf_ready, vllm_computes, vllm_ready, vllm_sleeps, vllm_wakes
from backends.release import VLLM_RELEASE, Asked
from backends.selection import GGUF, VLLM
from backends.vllm.signs import vllm_sign


@dataclass(frozen=True, slots=True)
class Timing:
    """How patient an EngineProcess is. A starting engine that neither answers nor prints for `silence_seconds` is
    killed; loading may take as long as it likes. One that is READY and leaves `hang_looks` looks in a row without an
    answer, or computes nothing during `stall_looks` of them though it has requests, is killed and started again; so is
    one that was idle for `idle_looks` and has no token for us within `idle_answer_seconds`."""

    grace_seconds: float = 10.0
    probe_interval_seconds: float = 0.05
    silence_seconds: float = 120.0
    look_interval_seconds: float = 5.0
    look_timeout_seconds: float = 5.0
    hang_looks: int = 5
    stall_looks: int = 60
    idle_looks: int = 12
    idle_answer_seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class EngineKind:
    """`ready` asks under the model's names and gives the progress of loading, 1.0 once ready, None without an answer.
    `requests` and `steps` are the names in /metrics of what it has to do and of what it has done. `computes` asks for
    one token within some seconds; None where the numbers alone tell that it hangs. `sleeps` and `wakes` send an engine
    that can do it to sleep without ending it, and back; one with a `release` tells its version."""

    timing: Timing
    sign: Reader
    ready: Callable[[HttpClient, Sequence[str]], Awaitable[float | None]]
    requests: tuple[str, ...]
    steps: str
    computes: Callable[[HttpClient, Sequence[str], float], Awaitable[bool]] | None = None
    sleeps: Callable[[HttpClient], Awaitable[bool]] = vllm_sleeps
    wakes: Callable[[HttpClient], Awaitable[bool]] = vllm_wakes
    release: Asked | None = None


KINDS: dict[str, EngineKind] = {
    GGUF: EngineKind(
        timing=Timing(),
        sign=gguf_sign,
        ready=gguf_ready,
        requests=("upshift_engine_running", "upshift_engine_waiting"),
        steps="upshift_engine_steps_total",
    ),
    # A start takes minutes and may be silent for some of them, while kernels are compiled. Its processes take some
    # seconds to end in order.
    VLLM: EngineKind(
        timing=Timing(grace_seconds=20.0, probe_interval_seconds=0.25, silence_seconds=900.0),
        sign=vllm_sign,
        ready=vllm_ready,
        requests=("vllm:num_requests_running", "vllm:num_requests_waiting"),
        steps="vllm:iteration_tokens_total_count",
        computes=vllm_computes,
        release=VLLM_RELEASE,
    ),
}
