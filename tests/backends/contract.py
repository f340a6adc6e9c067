"""The engines that the contract of a Backend is held to, each behind the seam as the gateway has it.

To add one: a function that yields a Subject, and its name in KINDS. Engines that take long to start run once for all
tests, in a fixture of conftest.py that gives their address; the backend in front of them is made for each test.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.access import Access
from backends.base import Backend, BackendState
from backends.gguf.demo import DEMO_MODEL_PATH
from backends.inquiry import openai_health
from backends.ollama.calls import OllamaCalls, ollama_health
from backends.openai import OpenAIBackend
from backends.remote import Dialect, RemoteBackend, Rhythm
from tests.backends.ollama.server import OllamaServer
from tests.backends.vllm_shaped import Replica
from tests.benchmarks.bench_engine_build import kept_llama_server
from tests.engine import running_engine, wait_for
from tests.fakes import FakeBackend
from tests.vllm import MODEL, VllmUnderTest

READY_SECONDS = 60.0
RHYTHM = Rhythm(steady_seconds=0.2, trouble_seconds=0.05, least_seconds=0.01)


@dataclass(frozen=True)
class Subject:
    """One engine that runs. `running` is how many requests it says it has; `kill` ends it as `kill -9` would, None for
    one that other tests need. `endless` are the fields that keep it writing up to `max_tokens`. A `scripted` one
    answers the same to every request; one with `any_model` answers to every name."""

    backend: Backend
    running: Callable[[], Awaitable[int]]
    kill: Callable[[], Awaitable[None]] | None = None
    endless: Mapping[str, Any] = field(default_factory=dict)
    scripted: bool = False
    any_model: bool = False


@asynccontextmanager
async def reaching(backend: RemoteBackend) -> AsyncIterator[RemoteBackend]:
    """`backend`, started and READY."""
    await backend.start()
    try:
        async with asyncio.timeout(READY_SECONDS):
            while backend.state is not BackendState.READY:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        yield backend
    finally:
        await backend.stop()


def endpoint(kind: str, address: str) -> RemoteBackend:
    """An OpenAI endpoint that serves MODEL."""
    look = partial(openai_health, names=(MODEL,))
    return RemoteBackend(kind, Access(address), Dialect(partial(OpenAIBackend, kind), look), RHYTHM)


async def requests_of(backend: RemoteBackend) -> int:
    """What the engine's own /metrics say."""
    assert backend.inquiry is not None
    load = await backend.inquiry.load()
    return load.running + load.waiting


@asynccontextmanager
async def fake(_: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    """tests/fakes.py, which stands in for every engine elsewhere in the tests."""
    backend = FakeBackend()

    async def running() -> int:
        return backend.open

    yield Subject(backend, running, scripted=True, any_model=True)


@asynccontextmanager
async def vllm_shaped(_: pytest.FixtureRequest | Path) -> AsyncIterator[Subject]:
    """A server with vLLM's manners and no model."""
    async with Replica(MODEL, token_seconds=0.002) as replica, reaching(endpoint("vllm", replica.address)) as backend:

        async def running() -> int:
            return replica.running

        yield Subject(backend, running, replica.die)


@asynccontextmanager
async def gguf(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    """Our engine with the demo model."""
    address = request.getfixturevalue("gguf_address")
    async with reaching(endpoint("gguf", address)) as backend:
        yield Subject(backend, partial(requests_of, backend), endless={"ignore_eos": True})


@asynccontextmanager
async def llama_server(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    """llama.cpp's own server with the same model."""
    address = request.getfixturevalue("llama_server_address")
    async with reaching(endpoint("gguf", address)) as backend:
        yield Subject(backend, partial(requests_of, backend), endless={"ignore_eos": True}, any_model=True)


@asynccontextmanager
async def ollama(_: pytest.FixtureRequest | Path) -> AsyncIterator[Subject]:
    """A server of Ollama's protocol; it gets the configured model, whatever a request is called by."""
    async with OllamaServer("phi3:latest", token_seconds=0.002) as server:
        dialect = Dialect(partial(OllamaCalls, "gguf", model="phi3"), partial(ollama_health, model="phi3"), False)
        async with reaching(RemoteBackend("gguf", Access(server.address), dialect, RHYTHM)) as backend:

            async def running() -> int:
                return server.running

            yield Subject(backend, running, server.die, any_model=True)


@asynccontextmanager
async def vllm(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    """The real one, past the gateway that has launched it, with the demo model."""
    under_test: VllmUnderTest = request.getfixturevalue("vllm")
    under_test.wait_ready()
    async with reaching(endpoint("vllm", f"unix:{under_test.socket}")) as backend:
        yield Subject(backend, partial(requests_of, backend), endless={"ignore_eos": True})


KINDS: Mapping[str, Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Subject]]] = {
    "fake": fake,
    "vllm-shaped": vllm_shaped,
    "gguf": gguf,
    "llama-server": llama_server,
    "ollama": ollama,
    "vllm": vllm,
}


@asynccontextmanager
async def gguf_alone(folder: Path) -> AsyncIterator[Subject]:
    """An engine of one's own, to be killed."""
    with running_gguf(folder) as (address, process):
        async with reaching(endpoint("gguf", address)) as backend:
            yield _mortal(backend, process)


@asynccontextmanager
async def llama_server_alone(folder: Path) -> AsyncIterator[Subject]:
    """The same for llama-server."""
    with running_llama_server(folder) as (address, process):
        async with reaching(endpoint("gguf", address)) as backend:
            yield _mortal(backend, process)


MORTALS: Mapping[str, Callable[[Path], AbstractAsyncContextManager[Subject]]] = {
    "vllm-shaped": vllm_shaped,
    "gguf": gguf_alone,
    "llama-server": llama_server_alone,
    "ollama": ollama,
}


def _mortal(backend: RemoteBackend, process: subprocess.Popen[Any]) -> Subject:
    async def kill() -> None:
        os.kill(process.pid, signal.SIGKILL)

    return Subject(backend, partial(requests_of, backend), kill, {"ignore_eos": True})


@contextmanager
def running_gguf(folder: Path) -> Iterator[tuple[str, subprocess.Popen[Any]]]:
    """`upshift engine demo`; a test may have killed it."""
    with running_engine("demo", folder, "--parallel", "4", "--name", MODEL, dies=True) as engine:
        yield f"unix:{engine.socket}", engine.process


@contextmanager
def running_llama_server(folder: Path) -> Iterator[tuple[str, subprocess.Popen[Any]]]:
    """llama-server with the demo model, where it has been built (`make llama-server`); else the test is skipped."""
    binary = kept_llama_server()
    if binary is None:
        pytest.skip("llama-server is not built here; `make llama-server` does it")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [str(binary), "-m", str(DEMO_MODEL_PATH), "--alias", MODEL, "--host", "127.0.0.1", "--port", str(port)]
    command += ["-np", "4", "-c", "2048", "-t", "1", "--metrics", "--no-webui", "--offline"]
    with (folder / "llama-server.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        wait_for(partial(_answers, port, process), seconds=READY_SECONDS)
        yield f"http://127.0.0.1:{port}", process
    finally:
        process.kill()
        process.wait()


def _answers(port: int, process: subprocess.Popen[Any]) -> bool:
    assert process.poll() is None, "llama-server ended"
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", port)) != 0:
            return False
    return httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False, timeout=30).status_code == 200
