"""Two gateways behind a TCP balancer, ended and started again in turn under load: no client notices."""

from __future__ import annotations

import http.client
import json
import random
import shutil
import socket
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.canary import PROMPT
from tests.e2e.balancers import Balancer, haproxy, nginx
from tests.e2e.gateway import GatewayUnderTest, running_gateway
from tests.engine import wait_for

QUESTION: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 16}
START_SECONDS = 120.0


class Instance:
    """One of the gateways, at a port that it keeps."""

    def __init__(self, folder: Path, config: str) -> None:
        folder.mkdir()
        self.port = lasting_port()
        self._folder = folder
        self._config = config
        self._life: AbstractContextManager[GatewayUnderTest] | None = None
        self.gateway: GatewayUnderTest

    def start(self) -> None:
        """Returns when it is ready."""
        self._life = running_gateway(self._folder, self._config, self.port)
        self.gateway = self._life.__enter__()
        wait_for(self.gateway.ready, START_SECONDS)

    def stop(self) -> None:
        """SIGTERM, its exit code 0, and not an answer that was not whole."""
        if self._life is not None:
            life, self._life = self._life, None
            life.__exit__(None, None, None)
            lines = [json.loads(line) for line in self.gateway.access_log.read_text().splitlines()]
            assert {line["status"] for line in lines if line["event"] == "request"} <= {200}

    def answered(self) -> float:
        return self.gateway.metric("upshift_requests_total")


def lasting_port() -> int:
    """A free one below those that the system gives to connections: nobody takes it while its gateway restarts."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def official(port: int, number: int) -> Generator[bool]:
    """The official client, which keeps connections; every second answer is a stream. Yields whether one was whole."""
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120) as client:
        while True:
            number += 1
            if number % 2:
                yield client.chat.completions.create(**QUESTION).usage is not None
            else:
                chunks = list(client.chat.completions.create(**QUESTION, stream=True))
                yield chunks[-1].choices[0].finish_reason is not None


def kept(port: int, number: int) -> Generator[bool]:
    """One connection as long as it is kept, by a client that believes in it: it looks at nothing before it sends."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        while True:
            number += 1
            stream = bool(number % 2)
            body = json.dumps({**QUESTION, "stream": stream})
            connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            answer = connection.getresponse()
            said = answer.read()
            assert answer.status == 200, said
            yield said.endswith(b"data: [DONE]\n\n") if stream else "usage" in json.loads(said)
    finally:
        connection.close()


def fresh(port: int, number: int) -> Generator[bool]:
    """A connection for each request."""
    while True:
        number += 1
        client = kept(port, number)
        yield next(client)
        client.close()


KINDS: tuple[Callable[[int, int], Generator[bool]], ...] = (official, official, kept, kept, fresh, fresh)


def ask_until(over: threading.Event, answers: Generator[bool]) -> tuple[int, list[str]]:
    """How many answers were whole, and what was wrong with others."""
    whole = 0
    while not over.is_set():
        try:
            if not next(answers):
                return whole, ["an answer without its end"]
        except (openai.OpenAIError, http.client.HTTPException, OSError, AssertionError) as error:
            return whole, [repr(error)]
        whole += 1
    answers.close()
    return whole, []


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="the balancers are fetched with apt-get")
@pytest.mark.engine
@pytest.mark.parametrize(
    ("balancer", "server", "rounds"),
    [(nginx, "{}", 3), (haproxy, "{drain_delay_seconds: 3, workers: 2}", 2)],
    ids=["nginx, which asks nobody", "HAProxy, which looks at readiness and tries once"],
)
def test_restarts_in_turn_fail_nobody(
    tmp_path: Path, tiny_model: Path, balancer: Balancer, server: str, rounds: int
) -> None:
    config = (
        f"server: {server}\n"
        f"models: [{{name: m, context_tokens: 2048, gguf: {{source: {tiny_model}, parallel: 8, threads: 1}}}}]\n"
    )
    instances = [Instance(tmp_path / name, config) for name in ("one", "other")]
    over = threading.Event()
    with ExitStack() as stack:
        for instance in instances:
            stack.callback(instance.stop)
            instance.start()
        port = stack.enter_context(balancer(tmp_path, [instance.port for instance in instances]))
        pool = stack.enter_context(ThreadPoolExecutor(len(KINDS)))
        stack.callback(over.set)
        clients = [pool.submit(ask_until, over, kind(port, number)) for number, kind in enumerate(KINDS)]
        for instance in instances:
            wait_for(partial(_serves, instance, clients), START_SECONDS)
        for _ in range(rounds):
            for instance in instances:
                instance.stop()
                instance.start()
                # As a rolling update does it: the next one when the balancer has taken this one back.
                wait_for(partial(_serves, instance, clients), START_SECONDS)
        over.set()
        ends = [client.result() for client in clients]
    assert [error for _, errors in ends for error in errors] == []
    assert min(whole for whole, _ in ends) >= rounds


def _serves(instance: Instance, clients: list[Any]) -> bool:
    """Whether it has answered some since its start; also where nobody asks any more, which the end will tell."""
    return instance.answered() >= 10 or all(client.done() for client in clients)
