"""EngineBackend over a fake engine process: what callers meet in each state, and across a crash."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable

import pytest

from backends.base import BackendResponse, BackendState, InferenceRequest, Operation
from backends.engine import EngineBackend
from backends.errors import BackendLoading, BackendProtocolError, BackendUnavailable, EngineStartFailed
from backends.process import EngineProcess
from tests.backends.fake_engine import EVENT
from tests.backends.supervised import LIMIT_SECONDS, TIMING, Pauses, fake_argv
from tests.fakes import body_of

Make = Callable[..., tuple[EngineBackend, EngineProcess, Pauses]]

pytestmark = pytest.mark.asyncio(loop_factories=["asyncio", "uvloop"])


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    made: list[EngineBackend] = []

    def build(*modes: str) -> tuple[EngineBackend, EngineProcess, Pauses]:
        pauses = Pauses()
        process = EngineProcess("demo", lambda path: fake_argv(path, *modes), timing=TIMING, sleep=pauses)
        made.append(EngineBackend("gguf", process))
        return made[-1], process, pauses

    yield build
    for backend in made:
        await backend.stop()


def _request(*, stream: bool = False) -> InferenceRequest:
    body = b'{"model": "demo", "stream": true}' if stream else b'{"model": "demo"}'
    return InferenceRequest(Operation.CHAT, "demo", body, stream, "request-1")


async def _body(response: BackendResponse) -> bytes:
    try:
        return await body_of(response)
    finally:
        response.close()


async def test_request_is_answered_by_the_engine(make: Make) -> None:
    backend, _, _ = make()
    await backend.start()
    await backend.wait_ready(LIMIT_SECONDS)
    assert (backend.name, backend.state, backend.progress, backend.failure) == ("gguf", BackendState.READY, 1.0, "")
    assert await _body(await backend.send(_request())) == b'{"ok": true}'


async def test_before_start_and_after_stop_nothing_is_sent(make: Make) -> None:
    backend, _, _ = make()
    with pytest.raises(BackendUnavailable, match="stopped: not running"):
        await backend.send(_request())
    await backend.start()
    await backend.wait_ready(LIMIT_SECONDS)
    await backend.stop()
    await backend.stop()
    with pytest.raises(BackendUnavailable):
        await backend.send(_request())


async def test_started_again_after_stop_it_answers(make: Make) -> None:
    backend, _, _ = make()
    for _ in range(2):
        await backend.start()
        await backend.wait_ready(LIMIT_SECONDS)
        assert await _body(await backend.send(_request())) == b'{"ok": true}'
        await backend.stop()


async def test_while_loading_the_caller_learns_how_far_it_is(make: Make) -> None:
    backend, process, _ = make("loading")
    await backend.start()
    async with asyncio.timeout(LIMIT_SECONDS):
        while process.progress != 0.42:
            await process.changed()
    with pytest.raises(BackendLoading) as caught:
        await backend.send(_request())
    assert (caught.value.backend, caught.value.progress, caught.value.retryable) == ("gguf", 0.42, True)


async def test_model_that_does_not_load_is_named_as_the_cause(make: Make) -> None:
    backend, _, _ = make("fail=1")
    await backend.start()
    with pytest.raises(EngineStartFailed):
        await backend.wait_ready(LIMIT_SECONDS)
    assert (backend.state, backend.failure) == (BackendState.FAILED, "the file is no GGUF file")
    with pytest.raises(BackendUnavailable, match="failed: the file is no GGUF file") as caught:
        await backend.send(_request())
    assert not isinstance(caught.value, BackendLoading)
    assert caught.value.backend == "gguf"


async def test_crash_cuts_every_stream_and_the_next_engine_answers_again(make: Make) -> None:
    backend, process, pauses = make()
    await backend.start()
    await backend.wait_ready(LIMIT_SECONDS)
    streams = [await backend.send(_request(stream=True)) for _ in range(5)]
    for response in streams:
        assert await anext(response.chunks) == EVENT
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    async with asyncio.timeout(1.0):
        for response in streams:
            with pytest.raises(BackendProtocolError):
                await _body(response)
    async with asyncio.timeout(LIMIT_SECONDS):
        await pauses.begun.get()
    with pytest.raises(BackendUnavailable, match="failed: ended by SIGKILL"):
        await backend.send(_request())
    pauses.end()
    await backend.wait_ready(LIMIT_SECONDS)
    assert await _body(await backend.send(_request())) == b'{"ok": true}'
    assert backend.restarts == 1


async def test_suspended_engine_makes_callers_wait_and_lets_them_leave(make: Make) -> None:
    backend, process, _ = make()
    await backend.start()
    await backend.wait_ready(LIMIT_SECONDS)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await backend.send(_request())
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert await _body(await backend.send(_request())) == b'{"ok": true}'


async def test_stop_ends_running_answers(make: Make) -> None:
    backend, _, _ = make()
    await backend.start()
    await backend.wait_ready(LIMIT_SECONDS)
    response = await backend.send(_request(stream=True))
    assert await anext(response.chunks) == EVENT
    async with asyncio.timeout(LIMIT_SECONDS):
        await backend.stop()
        with pytest.raises(BackendProtocolError):
            await _body(response)
