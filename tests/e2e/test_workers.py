"""Two workers behind one port: who answers, what they count together, and what outlives the end of which process."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.keys import hash_of, new_key
from tests.canary import PROMPT
from tests.e2e.gateway import GatewayUnderTest, children_of, engines_below, running_gateway
from tests.engine import is_alive, wait_for

QUESTION: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3}
STREAM = {**QUESTION, "stream": True, "max_tokens": 900, "ignore_eos": True}
CHAT = "/v1/chat/completions"
# The next request needs a new connection, for which the kernel chooses a worker anew.
ONCE = {"connection": "close"}


@contextmanager
def two_workers(folder: Path, model: Path) -> Iterator[GatewayUnderTest]:
    """Two workers and one engine of 16 slots."""
    models = f"models: [{{name: m, context_tokens: 2048, gguf: {{source: {model}, parallel: 16, threads: 1}}}}]\n"
    with running_gateway(folder, "server: {workers: 2}\n" + models) as gateway:
        wait_for(gateway.ready)
        yield gateway


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Iterator[GatewayUnderTest]:
    """For tests that leave it able to serve."""
    with two_workers(tmp_path_factory.mktemp("workers"), tiny_model) as gateway:
        yield gateway


@pytest.fixture
def own_gateway(tmp_path: Path, tiny_model: Path) -> Iterator[GatewayUnderTest]:
    """To be ended."""
    with two_workers(tmp_path, tiny_model) as gateway:
        yield gateway


def worker_of(response: httpx.Response) -> str:
    """Request ids begin with what each process drew for itself."""
    return response.headers["x-request-id"].rpartition("-")[0]


def workers_of(gateway: GatewayUnderTest) -> set[int]:
    """All children of the supervisor but the keeper, which has the engine below it."""
    return {pid for pid in children_of(gateway.process.pid) if not engines_below(pid)}


def everything_of(gateway: GatewayUnderTest) -> list[int]:
    children = children_of(gateway.process.pid)
    return [gateway.process.pid, *children, *engines_below(gateway.process.pid)]


def ask(gateway: GatewayUnderTest, **fields: Any) -> httpx.Response:
    return gateway.http.post(CHAT, json={**QUESTION, **fields}, headers=ONCE)


def computed(gateway: GatewayUnderTest) -> float:
    """Prompt tokens that the engine says it was given."""
    return gateway.engine_metric("prompt_tokens_total")


def counted(gateway: GatewayUnderTest, name: str, label: str = "", headers: dict[str, str] = ONCE) -> float:
    """The sum of a metric's samples, as a worker that the kernel chooses shows it."""
    lines = gateway.http.get("/metrics", headers=headers).text.splitlines()
    samples = [line for line in lines if line.startswith((name + "{", name + " ")) and label in line]
    return sum(float(sample.rpartition(" ")[2]) for sample in samples)


def test_two_workers_answer_and_count_as_one(gateway: GatewayUnderTest) -> None:
    names = [("upshift_requests_total", ""), ("upshift_request_duration_seconds_count", "")]
    names += [("upshift_tokens_total", 'kind="prompt"'), ("upshift_tokens_total", 'kind="completion"')]
    before = [counted(gateway, *name) for name in names]
    answers = [ask(gateway) for _ in range(20)]
    while len({worker_of(answer) for answer in answers}) < 2:
        answers.append(ask(gateway))
    assert {answer.status_code for answer in answers} == {200}
    tokens = [answer.json()["usage"] for answer in answers]
    added = [len(answers)] * 2 + [sum(usage[f"{kind}_tokens"] for usage in tokens) for kind in ("prompt", "completion")]
    for _ in range(10):
        wait_for(
            lambda: [counted(gateway, *name) for name in names] == [sum(p) for p in zip(before, added, strict=True)]
        )
    assert (counted(gateway, "upshift_in_flight"), counted(gateway, "upshift_backend_up")) == (0, 1)
    assert counted(gateway, "upshift_workers") == 2
    # Both workers ask the one engine how it is: its numbers are not added up.
    assert counted(gateway, "upshift_backend_replicas", 'state="ready"') == 1
    wait_for(lambda: ask(gateway).is_success and counted(gateway, "upshift_engine_prefix_cache_queries_total") > 0)
    wait_for(lambda: counted(gateway, "upshift_engine_prefix_cache_queries_total") <= computed(gateway))
    wait_for(lambda: counted(gateway, "upshift_engine_running") == 0)
    assert len(engines_below(gateway.process.pid)) == 1
    log = gateway.log.read_text()
    assert log.count("workers: 2") == log.count("model m is ready") == 1


@pytest.mark.parametrize(
    ("number", "its_end"), [(signal.SIGKILL, "cut"), (signal.SIGTERM, "data: [DONE]")], ids=["killed", "drained"]
)
def test_worker_that_ends_takes_at_most_its_own_streams_and_is_replaced(
    gateway: GatewayUnderTest, number: signal.Signals, its_end: str
) -> None:
    for _ in range(10):
        ask(gateway)
    finished = counted(gateway, "upshift_requests_total")
    restarts = counted(gateway, "upshift_worker_restarts_total")
    engine, before = gateway.engine_pid(), workers_of(gateway)
    ends: dict[str, Counter[str]] = defaultdict(Counter)
    with ExitStack() as stack:
        streams: list[tuple[httpx.Response, Iterator[str]]] = []
        while len({worker_of(stream) for stream, _ in streams}) < 2 or len(streams) < 6:
            context = gateway.http.stream("POST", CHAT, json=STREAM, headers=ONCE)
            response = stack.enter_context(context)
            lines = response.iter_lines()
            next(lines)
            streams.append((response, lines))
        os.kill(min(before), number)
        killed_at = time.monotonic()
        for response, lines in streams:
            try:
                last = [line for line in lines if line][-1]
            except httpx.RemoteProtocolError:
                last = "cut"
            ends[worker_of(response)][last] += 1
    assert sorted(next(iter(end)) for end in ends.values()) == sorted(["data: [DONE]", its_end])
    assert all(len(end) == 1 for end in ends.values()), "a worker's streams ended in different ways"
    # Connections that the kernel gives to the one that ended wait for its successor.
    answers = [ask(gateway) for _ in range(20)]
    assert {answer.status_code for answer in answers} == {200}
    wait_for(lambda: counted(gateway, "upshift_workers") == 2)
    assert time.monotonic() - killed_at < 20
    assert len(workers_of(gateway) - before) == 1
    assert gateway.engine_pid() == engine
    assert counted(gateway, "upshift_requests_total") >= finished + len(answers)
    assert counted(gateway, "upshift_worker_restarts_total") == restarts + 1
    wait_for(lambda: gateway.engine_metric("running") == 0)


async def load(port: int, served: asyncio.Semaphore) -> Counter[str]:
    """One client that asks again and again, half the time over a connection of its own, until it is refused."""
    ends: Counter[str] = Counter()
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        for number in itertools.count():
            body = {**QUESTION, "stream": number % 3 == 0}
            headers = ONCE if number % 2 else {}
            try:
                answer = await client.post(CHAT, json=body, headers=headers)
                whole = answer.text.endswith("data: [DONE]\n\n") if body["stream"] else "usage" in answer.json()
                ends["whole" if answer.status_code == 200 and whole else answer.text] += 1
                served.release()
            except httpx.ConnectError:
                break
            except httpx.TransportError as error:
                ends[repr(error)] += 1
                break
    return ends


async def test_sigterm_under_load_loses_no_request(own_gateway: GatewayUnderTest) -> None:
    everything = everything_of(own_gateway)
    served = asyncio.Semaphore(0)
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        clients = [group.create_task(load(int(own_gateway.url.rpartition(":")[2]), served)) for _ in range(12)]
        for _ in range(60):
            await served.acquire()
        own_gateway.process.terminate()
    assert {end for client in clients for end in client.result()} == {"whole"}
    assert await asyncio.to_thread(own_gateway.process.wait, 20) == 0
    assert not any(map(is_alive, everything))
    lines = [json.loads(line) for line in own_gateway.access_log.read_text().splitlines()]
    statuses = [line["status"] for line in lines if line["event"] == "request"]
    assert statuses == [200] * sum(client.result().total() for client in clients)


def test_killed_supervisor_leaves_nothing_behind(own_gateway: GatewayUnderTest) -> None:
    everything = everything_of(own_gateway)
    folder = own_gateway.engine_socket().parent
    assert len(everything) == 5
    own_gateway.process.kill()
    assert wait_for(lambda: not any(map(is_alive, everything))) < 5
    assert not folder.exists()


def test_model_that_does_not_load_ends_all_of_it(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(tiny_model.read_bytes()[:50_000])
    command = [sys.executable, "-m", "gateway.cli", "serve", "--model", str(path), "--port", "0", "--workers", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert "is damaged or no GGUF file" in ended.stderr
    assert "no model can be served" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_limits_are_exact_over_all_workers(tmp_path: Path, tiny_model: Path) -> None:
    key = new_key()
    entry = f"{{name: a, hash: '{hash_of(key)}', surfaces: [openai, operators]}}"
    (tmp_path / "keys.yaml").write_text(f"keys: [{entry}]")
    config = (
        "server: {workers: 2}\nauth: {keys_file: keys.yaml}\nlimits: {default: {requests_per_minute: 40}}\n"
        f"models: [{{name: m, context_tokens: 2048, gguf: {{source: {tiny_model}, parallel: 16, threads: 1}}}}]\n"
    )
    with running_gateway(tmp_path, config) as gateway:
        wait_for(gateway.ready)
        headers = ONCE | {"authorization": f"Bearer {key}"}
        began = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: gateway.http.post(CHAT, json=QUESTION, headers=headers), range(80)))
        admitted = [answer for answer in answers if answer.status_code == 200]
        assert len(admitted) == 40 or time.monotonic() - began > 60
        assert {answer.status_code for answer in answers} == {200, 429}
        assert len({worker_of(answer) for answer in admitted}) == 2
        left = sorted(int(answer.headers["x-ratelimit-remaining-requests"]) for answer in admitted)
        assert (left[0], left[-1]) == (0, 39)
        assert counted(gateway, "upshift_rate_limited_total", 'limit="requests"', headers) == 80 - len(admitted)


def test_revoked_key_is_refused_by_every_worker_within_a_second(tmp_path: Path, tiny_model: Path) -> None:
    alice, bob = new_key(), new_key()
    file = tmp_path / "keys.yaml"
    file.write_text(f"keys: [{{name: a, hash: '{hash_of(alice)}'}}, {{name: b, hash: '{hash_of(bob)}'}}]")
    config = (
        "server: {workers: 2}\nauth: {keys_file: keys.yaml}\n"
        f"models: [{{name: m, context_tokens: 2048, gguf: {{source: {tiny_model}, parallel: 4, threads: 1}}}}]\n"
    )

    with running_gateway(tmp_path, config) as gateway:

        def ask_as(key: str) -> httpx.Response:
            return gateway.http.get("/v1/models", headers=ONCE | {"authorization": f"Bearer {key}"})

        assert {ask_as(key).status_code for key in (alice, bob) for _ in range(10)} == {200}
        command = [sys.executable, "-m", "gateway.cli", "keys", "revoke", "a", "--file", str(file)]
        subprocess.run(command, check=True, capture_output=True)
        revoked = time.monotonic()
        refused: set[str] = set()
        while len(refused) < 2:
            asked = time.monotonic()
            answer = ask_as(alice)
            if answer.status_code == 401:
                refused.add(worker_of(answer))
            else:
                # A second and what a busy machine takes to answer.
                assert asked - revoked < 1.5
        assert {ask_as(bob).status_code for _ in range(10)} == {200}
