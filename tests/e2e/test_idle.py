"""The real GGUF engine, stopped after a second without requests and started again for the next ones."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.base import Backend
from backends.factory import create_backends, own_engine
from backends.fit import MEMORY, Claim
from backends.hardware import Hardware
from backends.launch import EnginePlan
from backends.process import EngineProcess
from config.schema import GgufSettings, ModelSettings, Settings
from tests.canary import PROMPT
from tests.e2e.gateway import GatewayUnderTest, engines_below, running_gateway
from tests.engine import wait_for
from tests.gateway.running import serving_settings

CHAT = "/v1/chat/completions"
QUESTION: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3}
# The next request needs a new connection, for which the kernel chooses a worker anew.
ONCE = {"connection": "close"}


def config(workers: int) -> str:
    engine = "{source: demo, parallel: 8, threads: 1, idle_stop_seconds: 1}"
    return f"server: {{workers: {workers}}}\nmodels: [{{name: demo, context_tokens: 512, gguf: {engine}}}]\n"


def state(gateway: GatewayUnderTest) -> str:
    answer = gateway.http.get("/readyz", headers=ONCE)
    return str(answer.json()["models"][0]["state"]) if answer.status_code == 200 else "not ready"


def ask(gateway: GatewayUnderTest, _: int = 0) -> httpx.Response:
    return gateway.http.post(CHAT, json=QUESTION, headers=ONCE)


@pytest.mark.parametrize("workers", [1, 2])
def test_it_is_stopped_and_started_again_once_for_all_who_wait(tmp_path: Path, workers: int) -> None:
    with running_gateway(tmp_path, config(workers)) as gateway:
        wait_for(lambda: state(gateway) == "ready", seconds=60)
        used = ask(gateway)
        first = gateway.engine_pid()
        assert used.status_code == 200
        idle_seconds = wait_for(lambda: state(gateway) == "stopped", seconds=60)
        assert idle_seconds > 0.5, "it was used a moment ago"
        wait_for(lambda: not engines_below(gateway.process.pid))
        assert gateway.metric("upshift_backend_up") == 1
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda number: ask(gateway, number), range(16)))
        assert {answer.status_code for answer in answers} == {200}
        assert len(engines_below(gateway.process.pid)) == 1
        assert gateway.engine_pid() != first
        # Told by another task than the one that answers.
        wait_for(lambda: gateway.log.read_text().count("is ready on gguf") >= 2)
        assert gateway.log.read_text().count("is ready on gguf") == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_requests_that_come_just_when_it_stops_are_answered(tmp_path: Path, workers: int) -> None:
    """Pauses around the second after which it stops, longer and longer, several clients after each."""
    stops = 0
    with running_gateway(tmp_path, config(workers)) as gateway:
        wait_for(lambda: state(gateway) == "ready", seconds=60)
        with ThreadPoolExecutor(6) as pool:
            for step in range(20):
                assert {answer.status_code for answer in pool.map(lambda _: ask(gateway), range(6))} == {200}
                ended = time.monotonic()
                wait_for(lambda: time.monotonic() - ended > 0.95 + step * 0.1)  # noqa: B023 - used at once
                stops = gateway.log.read_text().count("has nothing to do")
                if stops >= 2:
                    break
            assert {answer.status_code for answer in pool.map(lambda _: ask(gateway), range(6))} == {200}
    assert stops >= 2


def two_thirds(hardware: Hardware) -> Claim:
    """Of the memory that this machine has: no two of these fit. Once loaded it goes unseen, for nothing takes it."""
    size = hardware.available_ram_bytes * 2 // 3
    return Claim({MEMORY: size}, size)


async def test_two_models_take_turns_in_memory_that_holds_one() -> None:
    processes: list[EngineProcess] = []

    def engine(plan: EnginePlan) -> Backend:
        backend = own_engine(replace(plan, claim=two_thirds))
        processes.append(backend._process)  # whose pid nobody else knows
        return backend

    gguf = GgufSettings(source="demo", parallel=4, threads=1, idle_stop_seconds=600)
    models = tuple(ModelSettings(name=name, context_tokens=512, gguf=gguf) for name in "ab")
    together = 0

    async def watch() -> None:
        nonlocal together
        while True:
            await asyncio.sleep(0.005)
            together = max(together, sum(process.pid is not None for process in processes))

    async with (
        asyncio.timeout(180),
        serving_settings(Settings(models=models), lambda model: create_backends(model, engine)) as gateway,
    ):
        watching = asyncio.create_task(watch())
        while not gateway.readiness.ready:  # noqa: ASYNC110 - states tell nobody
            await asyncio.sleep(0.05)
        assert sorted(process.state for process in processes) == ["ready", "stopped"]
        for _ in range(2):
            calls = (gateway.client.post(CHAT, json={**QUESTION, "model": name}, timeout=90) for name in "abab")
            answers = await asyncio.gather(*calls)
            assert [answer.status_code for answer in answers] == [200] * 4
        watching.cancel()
    assert together == 1
