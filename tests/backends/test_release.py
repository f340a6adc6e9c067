"""Engines of versions with known faults: told once in the log, kept as long as they are there, served all the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from aiohttp import web

from backends.access import Access
from backends.advisories import Release
from backends.base import BackendState
from backends.engine import EngineBackend
from backends.factory import ollama_endpoint, openai_endpoint
from backends.kinds import KINDS
from backends.release import Asked
from backends.remote import RemoteBackend, Rhythm
from backends.selection import GGUF, VLLM
from config.schema import GgufSettings, ModelSettings
from tests.backends.ollama.server import OllamaServer
from tests.backends.supervised import TIMING, Make
from tests.backends.vllm_shaped import Replica

MODEL = ModelSettings(name="m", gguf=GgufSettings(ollama="http://127.0.0.1:1", model="m"))
QUICK = Rhythm(steady_seconds=0.02, trouble_seconds=0.01, least_seconds=0.005)


@asynccontextmanager
async def started(backend: RemoteBackend) -> AsyncIterator[RemoteBackend]:
    backend._rhythm = QUICK
    await backend.start()
    try:
        yield backend
    finally:
        await backend.stop()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.005)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "known faults" in record.getMessage()]


async def test_a_remote_vllm_is_told_of_once_and_looked_at_anew_when_it_was_away(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Replica("m") as replica:
        replica.version = "0.14.0"
        async with started(openai_endpoint(VLLM, Access(replica.address), MODEL)) as backend:
            await until(lambda: replica.looks.get("/health", 0) > 3)
            assert backend.state is BackendState.READY
            assert replica.looks["/version"] == 1
            (told,) = warnings(caplog)
            assert told == f"vllm at {replica.address}: {backend.warning}"
            assert backend.warning.startswith("vLLM 0.14.0 has known faults: ")
            await replica.die()
            await until(lambda: backend.state is BackendState.FAILED)
            await replica.start()
            await until(lambda: replica.looks["/version"] == 2)
            assert len(warnings(caplog)) == 1, "it has been said"
            await replica.die()
            await until(lambda: backend.state is BackendState.FAILED)
            replica.version = "0.33.0"
            await replica.start()
            await until(lambda: backend.warning == "")
            assert len(warnings(caplog)) == 1


async def test_an_ollama_is_asked_in_its_own_way(caplog: pytest.LogCaptureFixture) -> None:
    async with OllamaServer("m:latest") as server:
        server.version = "0.17.0"
        async with started(ollama_endpoint(server.address, MODEL, MODEL.gguf or GgufSettings())) as backend:
            await until(lambda: bool(backend.warning))
            assert warnings(caplog) == [f"gguf at {server.address}: {backend.warning}"]
            assert "CVE-2026-7482" in backend.warning


@pytest.mark.parametrize(("status", "told"), [(200, True), (401, False), (404, False)])
async def test_a_llama_server_tells_its_build_among_its_properties(status: int, told: bool) -> None:
    asked = asyncio.Event()

    async def props(_: web.Request) -> web.Response:
        asked.set()
        return web.json_response({"total_slots": 4, "build_info": "b8000-abcdef0"}, status=status)

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "x.gguf", "owned_by": "llamacpp"}]})

    app = web.Application()
    app.router.add_get("/props", props)
    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        async with started(openai_endpoint(GGUF, Access(address), MODEL)) as backend:
            await until(asked.is_set)
            await until(lambda: bool(backend.warning) is told)
            assert backend.state is BackendState.READY
    finally:
        await runner.cleanup()


async def test_an_endpoint_that_does_not_say_is_served(caplog: pytest.LogCaptureFixture) -> None:
    async with Replica("m") as replica:
        replica.version = "0.1.0"
        access = Access(replica.address)
        backend = openai_endpoint(VLLM, access, MODEL)
        backend._dialect = backend._dialect._replace(release=Asked("/nowhere", lambda _: Release("vLLM", "0.14.0")))
        async with started(backend):
            await until(lambda: replica.looks.get("/nowhere", 0) == 1)
            await until(lambda: replica.looks["/health"] > 3)
            assert (backend.state, backend.warning) == (BackendState.READY, "")
    assert warnings(caplog) == []


async def test_an_engine_of_ours_is_told_of_once_however_often_it_starts(
    make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    kind = replace(KINDS[GGUF], release=Asked("/health", lambda _: Release("vLLM", "0.14.0")), timing=TIMING)
    engine = make(kind=kind)
    backend = EngineBackend(VLLM, engine)
    for start in range(2):
        await backend.start()
        await backend.wait_ready(20)
        await until(lambda: bool(backend.warning))
        assert backend.status.warning == backend.warning
        assert len(warnings(caplog)) == 1, start
        await backend.stop()
    assert warnings(caplog) == [f"engine {engine.name}: {backend.warning}"]
