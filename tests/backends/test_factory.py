from __future__ import annotations

import sys
from pathlib import Path

import pytest

from backends.base import BackendState, InferenceRequest, Operation
from backends.engine import EngineBackend
from backends.errors import BackendUnavailable, EngineStartFailed
from backends.factory import create_backends
from config.schema import GgufSettings, ModelSettings
from config.vllm import VllmSettings
from tests.backends.peer import answer, says, serve
from tests.fakes import body_of


def engine_for(model: ModelSettings) -> EngineBackend:
    (backend,) = create_backends(model)
    assert isinstance(backend, EngineBackend)
    return backend


def test_nothing_is_started_by_building(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (backend,) = create_backends(ModelSettings(name="demo", gguf=GgufSettings(source="demo")))
    assert (backend.name, backend.state) == ("gguf", BackendState.STOPPED)
    assert list(tmp_path.iterdir()) == []


async def test_endpoint_gets_the_body_unchanged_and_is_let_go_of_at_the_end() -> None:
    # Good enough for a list of models, too.
    answered = answer(b'{"data": [{"id": "far"}]}', b"content-type: application/json")
    async with serve(says(answered), over="tcp") as peer:
        (backend,) = create_backends(ModelSettings(name="far", gguf=GgufSettings(openai=peer.address + "/v1")))
        assert (backend.name, backend.state, peer.connections) == ("gguf", BackendState.STOPPED, 0)
        await backend.start()
        assert (backend.state, peer.connections) == (BackendState.STARTING, 0)
        request = InferenceRequest(Operation.CHAT, "far", b'{"model" : "far"}', False, "request-1")
        response = await backend.send(request)
        assert await body_of(response) == b'{"data": [{"id": "far"}]}'
        response.close()
        await backend.stop()
        await backend.stop()
        assert backend.state is BackendState.STOPPED
        with pytest.raises(BackendUnavailable):
            await backend.send(request)


async def test_settings_reach_the_engines_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interpreter that fails with its arguments as the cause shows what would have been run."""
    interpreter = tmp_path / "python"
    interpreter.write_text('#!/bin/sh\necho "upshift engine: error: $*" >&2\nexit 1\n')
    interpreter.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(interpreter))
    gguf = GgufSettings(source="/models/m.gguf", parallel=2, threads=1)
    backend = engine_for(ModelSettings(name="demo", aliases=("gpt-4", "o1"), context_tokens=512, gguf=gguf))
    await backend.start()
    with pytest.raises(EngineStartFailed):
        await backend.wait_ready(20)
    command, _, rest = backend.failure.partition(" --exit-with-parent ")
    assert command.startswith("-P -m gateway.cli engine --uds /")
    assert rest == (
        "--name=demo --name=gpt-4 --name=o1 --parallel=2 --threads=1 --context-tokens=512 -- /models/m.gguf"
    )
    await backend.stop()


async def test_one_name_has_its_engine_first_and_then_each_replica() -> None:
    vllm = VllmSettings(urls=("http://gpu-0:8000", "http://gpu-1:8000"))
    model = ModelSettings(name="m", gguf=GgufSettings(source="demo"), vllm=vllm)
    assert [backend.name for backend in create_backends(model)] == ["gguf", "vllm", "vllm"]


@pytest.mark.engine
async def test_real_engine_answers_to_name_and_alias_and_ends(tiny_model: Path) -> None:
    gguf = GgufSettings(source=str(tiny_model), parallel=1, threads=1)
    backend = engine_for(ModelSettings(name="tiny", aliases=("alias",), context_tokens=256, gguf=gguf))
    await backend.start()
    try:
        await backend.wait_ready(60)
        for name in ("tiny", "alias"):
            body = b'{"model": "%b", "prompt": "a", "max_tokens": 2}' % name.encode()
            response = await backend.send(InferenceRequest(Operation.COMPLETION, name, body, False, "request-1"))
            assert b'"completion_tokens"' in await body_of(response)
            response.close()
    finally:
        await backend.stop()
    assert backend.state is BackendState.STOPPED


@pytest.mark.engine
async def test_real_engine_says_why_a_file_does_not_load(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    backend = engine_for(ModelSettings(name="broken", gguf=GgufSettings(source=str(broken))))
    await backend.start()
    with pytest.raises(EngineStartFailed) as caught:
        await backend.wait_ready(60)
    assert "broken.gguf" in caught.value.message
    assert backend.restarts == 0
    await backend.stop()
