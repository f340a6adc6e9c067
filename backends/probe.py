"""What an engine is asked by whoever keeps it running: is it ready, does it still answer, does it still compute.

Neighbours: kinds.py (who is asked what), process.py (asks), http.py (the calls).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import NamedTuple

from backends.errors import BackendError
from backends.http import HttpClient
from backends.inquiry import models_answer
from backends.release import Asked

_MAX_BODY_BYTES = 4 * 1024 * 1024
_ANSWER_SECONDS = 5.0
# The first answer of a GPU engine may wait for kernels that are compiled only then.
_FIRST_ANSWER_SECONDS = 120.0
# A hundred gigabytes of weights from a GPU to pageable memory, or back.
_MOVE_SECONDS = 300.0
_JSON = [(b"content-type", b"application/json")]


class Unfit(Exception):
    """The engine runs and is of no use: it has to be killed. The message says why."""


class Work(NamedTuple):
    """How busy an engine is: `requests` it has, and the `steps` it has computed so far."""

    requests: float
    steps: float


async def ask(
    client: HttpClient, method: str, path: str, body: bytes = b"", *, seconds: float = _ANSWER_SECONDS
) -> tuple[int, bytes] | None:
    """Status and body of the answer; None without one in time."""
    try:
        async with asyncio.timeout(seconds):
            response = await client.request(method, path, _JSON if body else (), body)
            try:
                return response.status, await response.read(_MAX_BODY_BYTES)
            finally:
                response.close()
    except (BackendError, TimeoutError):
        return None


async def gguf_ready(client: HttpClient, _: Sequence[str]) -> float | None:
    """The progress that our engine's /health tells, 1.0 once ready; None without an answer."""
    answer = await ask(client, "GET", "/health")
    if answer is None:
        return None
    status, body = answer
    return 1.0 if status == 200 else _progress_in(body)


async def vllm_ready(client: HttpClient, names: Sequence[str]) -> float | None:
    """1.0 once vLLM has answered a request under the first of `names`; None until it answers at all. Raises Unfit when
    it answers and does not serve."""
    health = await ask(client, "GET", "/health")
    if health is None or health[0] != 200:
        return None
    listed = await ask(client, "GET", "/v1/models")
    if listed is None:
        return None
    served = models_answer(*listed, names)
    if served.failure:
        raise Unfit(served.failure)
    first = await _one_token(client, names, _FIRST_ANSWER_SECONDS)
    if first is None or first[0] != 200:
        said = "nothing" if first is None else f"{first[0]} {first[1][:200].decode(errors='replace')}"
        raise Unfit(f"it was up, but answered its first request with {said}")
    return 1.0


async def vllm_computes(client: HttpClient, names: Sequence[str], seconds: float) -> bool:
    """Whether one token comes within that time. vLLM's numbers come from the process that computes: when that stands
    still, they go on saying that it has nothing to do."""
    return await _one_token(client, names, seconds) is not None


async def _one_token(client: HttpClient, names: Sequence[str], seconds: float) -> tuple[int, bytes] | None:
    body = json.dumps({"model": names[0], "prompt": "1", "max_tokens": 1}).encode()
    return await ask(client, "POST", "/v1/completions", body, seconds=seconds)


async def vllm_sleeps(client: HttpClient) -> bool:
    """Sends vLLM to sleep: its weights go to the machine's memory, its KV cache is gone. Whether it did."""
    return await _done(client, "/sleep?level=1") and await _is_sleeping(client) is True


async def vllm_wakes(client: HttpClient) -> bool:
    """Brings its weights back. Whether it did."""
    return await _done(client, "/wake_up") and await _is_sleeping(client) is False


async def _done(client: HttpClient, path: str) -> bool:
    answer = await ask(client, "POST", path, seconds=_MOVE_SECONDS)
    return answer is not None and answer[0] == 200


async def _is_sleeping(client: HttpClient) -> bool | None:
    answer = await ask(client, "GET", "/is_sleeping")
    try:
        return None if answer is None or answer[0] != 200 else bool(json.loads(answer[1])["is_sleeping"])
    except (ValueError, TypeError, KeyError):
        return None


async def known_faults(client: HttpClient, release: Asked | None) -> str:
    """What Asked.faults says; nothing where the engine does not answer."""
    if release is None:
        return ""
    answer = await ask(client, "GET", release.path)
    return "" if answer is None else release.faults(*answer)


async def answers(client: HttpClient, seconds: float) -> bool:
    """Whether it still answers in that time, whatever it says."""
    return await ask(client, "GET", "/health", seconds=seconds) is not None


async def work(client: HttpClient, requests: Sequence[str], steps: str, seconds: float) -> Work | None:
    """Reads /metrics: the series called `requests` added up, and `steps`. None where the engine does not tell."""
    answer = await ask(client, "GET", "/metrics", seconds=seconds)
    if answer is None or answer[0] != 200:
        return None
    return Work(sum(total(answer[1], name) for name in requests), total(answer[1], steps))


def total(exposition: bytes, name: str) -> float:
    """The sum over all series of that name in Prometheus's text format."""
    prefixes = (f"{name} ".encode(), f"{name}{{".encode())
    lines = (line for line in exposition.splitlines() if line.startswith(prefixes))
    return sum(_number(line.rpartition(b"}")[2].split() if b"}" in line else line.split()[1:]) for line in lines)


def _number(words: Sequence[bytes]) -> float:
    try:
        return float(words[0])
    except (ValueError, IndexError):
        return 0.0


def _progress_in(body: bytes) -> float:
    """Below 1.0 whatever the engine says: only its 200 makes it ready."""
    try:
        value = json.loads(body)["progress"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return 0.0
    # In this order NaN becomes 0.0.
    return float(min(max(0.0, value), 0.99)) if isinstance(value, int | float) else 0.0
