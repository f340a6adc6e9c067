"""Clients that leave, engines that die, gateways that die, files that are no models: with the real processes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.benchmarks.random_model import SHAPES, write_random_model
from tests.e2e.gateway import GatewayUnderTest, engines_below, running_gateway
from tests.engine import PATIENCE_SECONDS, is_alive, wait_for

LONG: dict[str, Any] = {
    "model": "m",
    "messages": [{"role": "user", "content": "hello"}],
    "max_tokens": 1900,
    "ignore_eos": True,
}


@pytest.fixture
def own_gateway(tmp_path: Path, tiny_model: Path) -> Any:
    """A gateway of the test's own, to be hurt: 16 slots on the tiny model."""
    config = f"models: [{{name: m, context_tokens: 2048, gguf: {{source: {tiny_model}, parallel: 16, threads: 1}}}}]\n"
    with running_gateway(tmp_path, config) as gateway:
        wait_for(gateway.ready)
        yield gateway


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_client_that_leaves_frees_its_slot_within_a_second(own_gateway: GatewayUnderTest, stream: bool) -> None:
    async with httpx.AsyncClient(base_url=own_gateway.url, timeout=60) as client:
        request = asyncio.create_task(client.post("/v1/chat/completions", json={**LONG, "stream": stream}))
        await asyncio.to_thread(wait_for, lambda: own_gateway.engine_metric("running") == 1)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    assert wait_for(lambda: own_gateway.engine_metric("running") == 0) < 1
    assert own_gateway.engine_metric("cancelled_total") == 1
    steps = own_gateway.engine_metric("steps_total")
    assert own_gateway.engine_metric("steps_total") == steps, "the engine goes on computing"
    assert own_gateway.in_flight() == 0


async def test_a_client_that_leaves_while_waiting_is_forgotten(own_gateway: GatewayUnderTest) -> None:
    async with httpx.AsyncClient(
        base_url=own_gateway.url, timeout=60, limits=httpx.Limits(max_connections=None)
    ) as client:
        requests = [asyncio.create_task(client.post("/v1/chat/completions", json=LONG)) for _ in range(17)]
        await asyncio.to_thread(wait_for, lambda: own_gateway.metric("upshift_queue_depth") == 1)
        for request in requests:
            request.cancel()
        await asyncio.gather(*requests, return_exceptions=True)
    assert wait_for(lambda: own_gateway.engine_metric("running") + own_gateway.metric("upshift_queue_depth") == 0) < 1
    assert own_gateway.engine_metric("prompt_tokens_total") <= 16 * 30


async def test_every_stream_of_a_killed_engine_ends_in_an_error(own_gateway: GatewayUnderTest) -> None:
    victim = own_gateway.engine_pid()
    assert victim is not None
    started = asyncio.Barrier(17)

    async def read(client: httpx.AsyncClient) -> list[str]:
        async with client.stream("POST", "/v1/chat/completions", json={**LONG, "stream": True}) as response:
            assert response.status_code == 200
            lines = aiter(response.aiter_lines())
            first = await anext(lines)
            await started.wait()
            return [first, *[line async for line in lines if line]]

    async with httpx.AsyncClient(base_url=own_gateway.url, timeout=60) as client:
        async with asyncio.TaskGroup() as group:
            streams = [group.create_task(read(client)) for _ in range(16)]
            await started.wait()
            os.kill(victim, signal.SIGKILL)
        for stream in streams:
            last = stream.result()[-1]
            assert json.loads(last.removeprefix("data: "))["error"]["code"] == "backend_error"
            assert "data: [DONE]" not in stream.result()
        await asyncio.to_thread(wait_for, lambda: own_gateway.engine_pid() not in (None, victim))
        await asyncio.to_thread(wait_for, own_gateway.ready)
        again = await client.post("/v1/chat/completions", json={**LONG, "max_tokens": 3})
    assert again.json()["usage"]["completion_tokens"] == 3
    assert own_gateway.in_flight() == 0


def test_a_killed_gateway_leaves_no_engine_behind(own_gateway: GatewayUnderTest) -> None:
    engine = own_gateway.engine_pid()
    assert engine is not None
    own_gateway.process.kill()
    assert wait_for(lambda: not is_alive(engine)) < 5


def test_sigterm_leaves_no_engine_behind(own_gateway: GatewayUnderTest) -> None:
    engine = own_gateway.engine_pid()
    assert engine is not None
    own_gateway.process.terminate()
    assert own_gateway.process.wait(timeout=PATIENCE_SECONDS) == 0
    assert not is_alive(engine)


def test_a_running_answer_is_finished_before_the_exit(own_gateway: GatewayUnderTest) -> None:
    with httpx.stream(
        "POST", f"{own_gateway.url}/v1/chat/completions", json={**LONG, "stream": True, "max_tokens": 600}, timeout=60
    ) as response:
        lines = response.iter_lines()
        next(lines)
        own_gateway.process.terminate()
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert own_gateway.process.wait(timeout=PATIENCE_SECONDS) == 0


@pytest.mark.parametrize("kind", ["missing", "text", "cut"])
def test_a_file_that_is_no_model_ends_serve_with_the_cause(kind: str, tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "bad.gguf"
    if kind == "text":
        path.write_text("not a model")
    elif kind == "cut":
        path.write_bytes(tiny_model.read_bytes()[:50_000])
    command = [sys.executable, "-m", "gateway.cli", "serve", "--model", str(path), "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 1
    assert "bad.gguf" in ended.stderr
    assert kind != "cut" or "is damaged or no GGUF file" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_one_bad_model_does_not_take_the_others_down(tmp_path: Path, tiny_model: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(tiny_model.read_bytes()[:50_000])
    config = f"models: [{{name: bad, gguf: {{source: {bad}}}}}, {{name: m, gguf: {{source: {tiny_model}}}}}]\n"
    with running_gateway(tmp_path, config) as gateway:

        def states() -> list[str]:
            return [model["state"] for model in gateway.http.get("/readyz").json()["models"]]

        wait_for(lambda: states() == ["failed", "ready"])
        assert "is damaged or no GGUF file" in gateway.http.get("/readyz").json()["models"][0]["failure"]
        refused, answered = (
            gateway.http.post("/v1/completions", json={"model": name, "prompt": "x", "max_tokens": 2})
            for name in ("bad", "m")
        )
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "backend_unavailable")
        assert answered.status_code == 200
        assert len(engines_below(gateway.process.pid)) == 1


async def test_a_busy_engine_ends_with_its_killed_gateway(tmp_path: Path, tiny_model: Path) -> None:
    """The chat template never ends: the engine's interpreter is busy when its parent dies."""
    template = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    path = tmp_path / "loop.gguf"
    write_random_model(path, SHAPES["tiny"], template=template)
    with running_gateway(tmp_path, f"models: [{{name: m, gguf: {{source: {path}}}}}]\n") as gateway:
        wait_for(gateway.ready)
        engine = gateway.engine_pid()
        assert engine is not None
        async with httpx.AsyncClient(base_url=gateway.url, timeout=60) as client:
            request = asyncio.create_task(client.post("/v1/chat/completions", json=LONG))
            await asyncio.to_thread(wait_for, lambda: gateway.in_flight() == 1)
            gateway.process.kill()
            assert await asyncio.to_thread(wait_for, lambda: not is_alive(engine)) < 3
            await asyncio.gather(request, return_exceptions=True)
