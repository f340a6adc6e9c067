"""The real GGUF engine, stopped after a second without requests and started again for the next ones."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.gateway import GatewayUnderTest, engines_below, running_gateway
from tests.engine import wait_for

CHAT = "/v1/chat/completions"
QUESTION: dict[str, Any] = {"model": "demo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
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
        log = gateway.log.read_text()
        assert log.count("is ready on gguf") == 2, log


@pytest.mark.parametrize("workers", [1, 2])
def test_requests_that_come_just_when_it_stops_are_answered(tmp_path: Path, workers: int) -> None:
    """Pauses around the second after which it stops, several clients at each."""
    with running_gateway(tmp_path, config(workers)) as gateway:
        wait_for(lambda: state(gateway) == "ready", seconds=60)
        with ThreadPoolExecutor(6) as pool:
            for step in range(3):
                assert {answer.status_code for answer in pool.map(lambda _: ask(gateway), range(6))} == {200}
                ended = time.monotonic()
                wait_for(lambda: time.monotonic() - ended > 0.95 + step * 0.15)  # noqa: B023 - used at once
            assert {answer.status_code for answer in pool.map(lambda _: ask(gateway), range(6))} == {200}
        assert gateway.log.read_text().count("has nothing to do") >= 1
