"""vLLM behind the gateway: the same client, the same model name; its processes killed one by one under load."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from openai import OpenAI

from tests.benchmarks.parity import agreement, one_of_each
from tests.e2e.gateway import engines_below
from tests.engine import is_alive, wait_for
from tests.vllm import VllmUnderTest, held_files

pytestmark = pytest.mark.vllm

QUESTION: list[Any] = [{"role": "user", "content": "What is continuous batching?"}]
LONG = {"model": "demo", "messages": QUESTION, "max_tokens": 700, "ignore_eos": True, "temperature": 0}


@pytest.fixture
def client(vllm: VllmUnderTest) -> Iterator[OpenAI]:
    vllm.wait_ready()
    with OpenAI(base_url=f"{vllm.gateway.url}/v1", api_key="none", max_retries=0, timeout=300) as client:
        yield client


@pytest.mark.parametrize("name", ["demo", "gpt-4o-mini"])
def test_the_same_client_is_answered_by_vllm(client: OpenAI, name: str) -> None:
    answer = client.chat.completions.with_raw_response.create(model=name, messages=QUESTION, temperature=0)
    assert answer.headers["x-upshift-backend"] == "vllm"
    assert "batch" in (answer.parse().choices[0].message.content or "")


def test_streams_and_tools_work_as_with_gguf(client: OpenAI) -> None:
    stream = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0, stream=True)
    text = "".join(choice.delta.content or "" for chunk in stream for choice in chunk.choices)
    whole = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0)
    assert text == whole.choices[0].message.content
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    function: Any = {"name": "get_weather", "description": "Get the weather of a city", "parameters": parameters}
    called = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "What is the weather in Paris?"}],
        tools=[{"type": "function", "function": function}],
        temperature=0,
    )
    (call,) = called.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert json.loads(call.function.arguments) == {"city": "Paris"}


def test_its_tokens_are_counted(client: OpenAI, vllm: VllmUnderTest) -> None:
    usage = client.chat.completions.create(model="demo", messages=QUESTION, temperature=0).usage
    assert usage is not None
    wanted = f'upshift_tokens_total{{backend="vllm",kind="completion",model="demo"}} {float(usage.completion_tokens)}'
    shown = [line for line in vllm.gateway.http.get("/metrics").text.splitlines() if line.startswith(wanted[:60])]
    assert float(shown[0].rpartition(" ")[2]) >= usage.completion_tokens


def test_both_engines_say_the_same(client: OpenAI, vllm: VllmUnderTest) -> None:
    """All of the question file is in docs/vllm.md, made by tests.benchmarks.parity."""
    sockets = vllm.gateway.engine_socket(), vllm.socket
    compared = asyncio.run(agreement(*sockets, one_of_each()[:60]))
    assert compared.rate >= 0.95, "\n".join(map(str, compared.differences))


class Seen(NamedTuple):
    """What came of one request."""

    stream: bool
    status: int
    backend: str
    whole: bool


async def _ask_until(done: asyncio.Event, client: httpx.AsyncClient, *, stream: bool) -> list[Seen]:
    """One request after the other."""
    seen = []
    while not done.is_set():
        answer = await client.post("/v1/chat/completions", json={**LONG, "stream": stream})
        error = '"error"' in answer.text
        whole = answer.status_code == 200 and ("data: [DONE]" in answer.text or not stream) and not error
        assert whole or error, answer.text[-500:]
        assert not (error and "data: [DONE]" in answer.text), "vLLM's own error event has one behind it"
        seen.append(Seen(stream, answer.status_code, answer.headers.get("x-upshift-backend", ""), whole))
    return seen


@pytest.mark.parametrize("victim", ["worker", "engine", "server", "guard"])
async def test_any_process_of_it_may_be_killed_under_load(vllm: VllmUnderTest, victim: str) -> None:
    await asyncio.to_thread(vllm.wait_ready)
    before = vllm.processes()
    if victim not in before:
        pytest.skip("on one GPU the engine is its own worker")
    done = asyncio.Event()
    files, socket = held_files(before.values()), vllm.socket
    assert {file.parent for file in files} == {socket.parent, socket.parent / "rpc", Path("/dev/shm")}
    files.discard(socket)  # the next one listens there as well
    async with httpx.AsyncClient(base_url=vllm.gateway.url, timeout=300) as client, asyncio.TaskGroup() as group:
        asking = [group.create_task(_ask_until(done, client, stream=number % 2 == 0)) for number in range(6)]
        await asyncio.to_thread(wait_for, lambda: vllm.gateway.in_flight() >= 6)
        os.kill(before[victim], signal.SIGKILL)
        await asyncio.to_thread(wait_for, lambda: vllm.state() != "ready")
        await asyncio.to_thread(wait_for, lambda: not any(map(is_alive, before.values())))
        await asyncio.to_thread(wait_for, lambda: not any(file.exists() for file in files))
        done.set()
    seen = [each for task in asking for each in task.result()]
    assert {each.status for each in seen} == {200}, "before the first byte GGUF takes over"
    assert [each for each in seen if not each.whole and not each.stream] == []
    assert "gguf" in {each.backend for each in seen if each.whole}
    await asyncio.to_thread(vllm.wait_ready)
    assert set(before.values()).isdisjoint(vllm.processes().values())
    assert len(engines_below(vllm.gateway.process.pid)) == 1, "one GGUF engine, as before"
    assert vllm.gateway.in_flight() == 0
