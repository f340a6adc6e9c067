"""A model in Ollama as the gateway calls it: a real server of its protocol behind the backend the factory builds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from backends.base import Backend, BackendState, InferenceRequest, Operation
from backends.errors import (
    BackendError,
    BackendOverloaded,
    BackendProtocolError,
    BackendUnavailable,
    ContextLengthExceeded,
    InvalidRequest,
)
from backends.factory import create_backends
from backends.ollama.calls import tags_answer
from config.schema import GgufSettings, ModelSettings
from tests.backends.ollama.server import OllamaServer
from tests.fakes import body_of


@asynccontextmanager
async def calling(server: OllamaServer, **settings: Any) -> AsyncIterator[Backend]:
    gguf = GgufSettings(ollama=server.address, model="phi3")
    (backend,) = create_backends(ModelSettings(name="phi", aliases=("gpt-4o-mini",), gguf=gguf, **settings))
    await backend.start()
    try:
        async with asyncio.timeout(20):
            while backend.state is BackendState.STARTING:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.005)
        yield backend
    finally:
        await backend.stop()


def chat(model: str = "phi", *, stream: bool = False, **fields: Any) -> InferenceRequest:
    body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "stream": stream, **fields}
    return InferenceRequest(Operation.CHAT, model, json.dumps(body).encode(), stream, "r1")


async def answer_to(backend: Backend, request: InferenceRequest) -> bytes:
    response = await backend.send(request)
    try:
        return await body_of(response)
    finally:
        response.close()


async def test_alias_reaches_ollamas_model_with_the_same_context_each_time() -> None:
    async with OllamaServer("phi3:latest") as server, calling(server, context_tokens=2048) as backend:
        answer = json.loads(await answer_to(backend, chat("gpt-4o-mini", max_completion_tokens=2)))
        assert (answer["model"], answer["choices"][0]["message"]["content"]) == ("gpt-4o-mini", " 0 1")
        await answer_to(backend, chat(stream=True))
        assert [(body["model"], body["options"]["num_ctx"]) for body in server.bodies] == [("phi3", 2048)] * 2


async def test_tool_call_goes_there_and_back() -> None:
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    async with OllamaServer("phi3:latest") as server, calling(server) as backend:
        answer = json.loads(await answer_to(backend, chat(tools=tools)))
        (call,) = answer["choices"][0]["message"]["tool_calls"]
        assert json.loads(call["function"]["arguments"]) == {"city": "Zürich", "days": 2}
        history = [
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": call["id"], "content": "sunny"},
        ]
        await answer_to(backend, chat(messages=history))
        assert server.bodies[-1]["messages"][2]["tool_name"] == "weather"


async def test_field_that_ollama_would_ignore_never_reaches_it() -> None:
    async with OllamaServer("phi3:latest") as server, calling(server) as backend:
        with pytest.raises(InvalidRequest) as caught:
            await backend.send(chat(n=3))
        assert (caught.value.backend, caught.value.param, server.bodies) == ("gguf", "n", [])


async def test_error_in_the_middle_ends_no_stream_cleanly() -> None:
    async with OllamaServer("phi3:latest") as server, calling(server) as backend:
        server.breaks_after = 2
        with pytest.raises(BackendProtocolError, match="an error was encountered"):
            await answer_to(backend, chat(stream=True))
        with pytest.raises(BackendProtocolError):
            await answer_to(backend, chat())


@pytest.mark.parametrize(
    ("status", "text", "kind"),
    [
        (400, "the input length exceeds the context length", ContextLengthExceeded),
        (400, '"phi3" does not support thinking', InvalidRequest),
        (400, '{"error":{"message":"bad image","type":"invalid_request_error"}}', InvalidRequest),
        (404, "model 'phi3' not found", BackendUnavailable),
        (503, "server busy, please try again.  maximum pending requests exceeded", BackendOverloaded),
        (500, "llama runner process has terminated", BackendProtocolError),
        (403, "forbidden", BackendProtocolError),
    ],
)
async def test_refusals_are_the_errors_they_mean(status: int, text: str, kind: type[BackendError]) -> None:
    async with OllamaServer("phi3:latest") as server, calling(server) as backend:
        server.refusal = (status, text)
        with pytest.raises(BackendError) as caught:
            await backend.send(chat())
        assert (type(caught.value), caught.value.backend) == (kind, "gguf")
        assert caught.value.message.isprintable()
        assert "{" not in caught.value.message


async def test_model_that_is_not_pulled_is_a_failure_with_the_remedy() -> None:
    async with OllamaServer("llama3:8b") as server, calling(server) as backend:
        assert backend.state is BackendState.FAILED
        with pytest.raises(BackendUnavailable, match="`ollama pull phi3` gets it"):
            await backend.send(chat())


@pytest.mark.parametrize(
    ("status", "body", "model", "failure"),
    [
        (200, b'{"models": [{"name": "phi3:latest"}]}', "phi3", ""),
        (200, b'{"models": [{"name": "phi3:latest"}]}', "phi3:latest", ""),
        (200, b'{"models": [{"name": "hf.co/a/b:Q4"}]}', "hf.co/a/b:Q4", ""),
        (200, b'{"models": [{"name": "host:1/a/b:latest"}]}', "host:1/a/b", ""),
        (200, b'{"models": []}', "phi3", "it has no model phi3 (`ollama pull phi3` gets it); it has none"),
        (200, b'{"models": [{"name": "phi3:14b"}]}', "phi3", "it has no model phi3"),
        (200, b"<html>", "phi3", "no list of models"),
        (502, b"", "phi3", "answered with status 502"),
    ],
)
def test_list_of_models_is_understood(status: int, body: bytes, model: str, failure: str) -> None:
    health = tags_answer(status, body, model)
    assert failure in health.failure
    assert (health.state is BackendState.READY) == (not failure)
