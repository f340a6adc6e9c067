"""A hundred configurations one after the other under load: nobody notices, and no engine stays behind."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.canary import PROMPT
from tests.e2e.gateway import GatewayUnderTest, engines_below, running_gateway
from tests.engine import wait_for

CHAT = "/v1/chat/completions"
QUESTION: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 2}
STREAM = {**QUESTION, "stream": True, "max_tokens": 1500, "ignore_eos": True}
RELOADS = 100
CLIENTS = 4
# Changes that need another engine, beside those that do not.
ENGINE_CHANGES = 4


def configuration(model: Path, workers: int, number: int) -> str:
    alias = f"also-{number * ENGINE_CHANGES // RELOADS}"
    gguf = f"{{source: {model}, parallel: 8, threads: 1}}"
    return (
        f"server: {{workers: {workers}, idle_timeout_seconds: {60 + number}}}\n"
        f"models: [{{name: m, aliases: [{alias}], context_tokens: 2048, gguf: {gguf}}}]\n"
    )


def ask_until(gateway: GatewayUnderTest, enough: threading.Event) -> Counter[int]:
    """What one client was answered, over connections of which every tenth is kept."""
    statuses: Counter[int] = Counter()
    with httpx.Client(base_url=gateway.url, timeout=60) as client:
        while not enough.is_set():
            headers = {} if sum(statuses.values()) % 10 else {"connection": "close"}
            statuses[client.post(CHAT, json=QUESTION, headers=headers).status_code] += 1
    return statuses


def read_stream(gateway: GatewayUnderTest) -> str:
    """The last event of a long answer that begins before all reloads."""
    with httpx.stream("POST", gateway.url + CHAT, json=STREAM, timeout=120) as response:
        return [line for line in response.iter_lines() if line][-1]


@pytest.mark.engine
@pytest.mark.parametrize("workers", [1, 2])
def test_a_hundred_reloads_under_load_fail_nobody(workers: int, tmp_path: Path, tiny_model: Path) -> None:
    with running_gateway(tmp_path, configuration(tiny_model, workers, 0)) as gateway:
        wait_for(gateway.ready)
        enough = threading.Event()
        with ThreadPoolExecutor(CLIENTS + 2) as pool:
            streams = [pool.submit(read_stream, gateway) for _ in range(2)]
            clients = [pool.submit(ask_until, gateway, enough) for _ in range(CLIENTS)]
            try:
                for number in range(1, RELOADS):
                    (tmp_path / "upshift.yaml").write_text(configuration(tiny_model, workers, number))
                    gateway.process.send_signal(signal.SIGHUP)
                    wait_for(partial(has_reloaded, gateway, number))
            finally:
                enough.set()
            statuses = sum((client.result() for client in clients), Counter[int]())
            assert {stream.result() for stream in streams} == {"data: [DONE]"}
        assert set(statuses) == {200}, gateway.log.read_text()
        wait_for(lambda: len(engines_below(gateway.process.pid)) == 1)
        last = {"model": f"also-{(RELOADS - 1) * ENGINE_CHANGES // RELOADS}"}
        assert gateway.http.post(CHAT, json={**QUESTION, **last}).status_code == 200


def has_reloaded(gateway: GatewayUnderTest, times: int) -> bool:
    return reloads(gateway) >= times


def reloads(gateway: GatewayUnderTest) -> int:
    return gateway.log.read_text().count("the configuration was reloaded")


@pytest.mark.engine
@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_file_changes_nothing_and_is_named(workers: int, tmp_path: Path, tiny_model: Path) -> None:
    with running_gateway(tmp_path, configuration(tiny_model, workers, 0)) as gateway:
        wait_for(gateway.ready)
        (tmp_path / "upshift.yaml").write_text("models: [{name: m, gguf: {sauce: x}}]\n")
        wait_for(lambda: "did you mean source?" in gateway.log.read_text())
        assert gateway.http.post(CHAT, json=QUESTION).status_code == 200
        assert reloads(gateway) == 0
