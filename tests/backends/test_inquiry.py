"""What answers to /health and /v1/models mean, and a real endpoint that is asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backends.base import BackendState
from backends.errors import BackendProtocolError, BackendTimeout, BackendUnavailable
from backends.http import HttpClient
from backends.inquiry import READY, Inquiry, health_answer, models_answer, openai_health, silence
from tests.backends.peer import Talk, answer, says, serve

NAMES = ("llama3", "gpt-4o-mini")


def _list(*names: str, **fields: Any) -> bytes:
    return json.dumps({"object": "list", "data": [{"id": name, **fields} for name in names]}).encode()


@pytest.mark.parametrize(
    ("status", "body", "state"),
    [
        (200, b"", BackendState.READY),
        (404, b"", BackendState.READY),
        (503, b"", BackendState.FAILED),
        (500, b"Loading model", BackendState.FAILED),
        (503, b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}', BackendState.STARTING),
        (503, b'{"status":"loading","progress":0.4}', BackendState.STARTING),
    ],
)
def test_health_tells_dead_from_loading(status: int, body: bytes, state: BackendState) -> None:
    assert health_answer(status, body).state is state


@pytest.mark.parametrize(
    ("status", "body", "failure"),
    [
        (200, _list("llama3", "gpt-4o-mini", "other"), ""),
        (200, _list("/models/llama.gguf", owned_by="llamacpp"), ""),
        (200, _list("meta/Llama", "llama3"), "it does not serve gpt-4o-mini; it serves meta/Llama, llama3"),
        (200, _list("a", "b", owned_by="llamacpp"), "it does not serve llama3, gpt-4o-mini; it serves a, b"),
        (200, _list(*"abcdefg"), "it does not serve llama3, gpt-4o-mini; it serves a, b, c, d, e and 2 more"),
        (200, _list("x\r\ny" * 100), None),
        (200, _list(), "it does not serve llama3, gpt-4o-mini; it serves nothing"),
        (200, b"<html>", "GET /v1/models answered with status 200 and no list of models"),
        (200, b'{"data": ["llama3"]}', "GET /v1/models answered with status 200 and no list of models"),
        (500, _list("llama3"), "GET /v1/models answered with status 500 and no list of models"),
        (401, b'{"error":"Unauthorized"}', "it refuses the API key (status 401); see api_key and api_key_file"),
    ],
)
def test_every_name_must_be_served(status: int, body: bytes, failure: str | None) -> None:
    health = models_answer(status, body, NAMES)
    assert health.state is (BackendState.FAILED if health.failure else BackendState.READY)
    assert health.failure.isprintable()
    if failure is not None:
        assert health.failure == failure


def test_no_connection_is_told_from_no_answer() -> None:
    assert silence(BackendUnavailable("refused.")) == (BackendState.FAILED, "refused", False)
    assert not silence(BackendProtocolError("cut.")).slow
    assert silence(BackendTimeout("slow.")).slow


async def test_endpoint_that_is_well_is_ready_and_hears_the_credentials() -> None:
    heads = []

    async def script(talk: Talk) -> None:
        for body in (b"", _list(*NAMES)):
            heads.append((await talk.request())[0])
            await talk.send(answer(body))

    async with serve(script, over="tcp") as peer:
        inquiry = Inquiry(HttpClient(peer.address), [(b"authorization", b"Bearer sesame")])
        assert await openai_health(inquiry, NAMES) == READY
        await inquiry.aclose()
    assert [head.split(b" ")[1] for head in heads] == [b"/health", b"/v1/models"]
    assert all(b"authorization: Bearer sesame\r\n" in head for head in heads)


async def test_silence_of_any_kind_is_a_failure_with_a_reason() -> None:
    async def mute(talk: Talk) -> None:
        await talk.request()
        await talk.gone()

    async with serve(mute) as peer:
        inquiry = Inquiry(HttpClient(peer.address), timeout_seconds=0.05)
        health = await openai_health(inquiry, NAMES)
        assert health == (BackendState.FAILED, "GET /health was not answered within 0.05 s", True)
        await inquiry.aclose()
    inquiry = Inquiry(HttpClient("unix:/nonexistent/engine.sock"))
    health = await openai_health(inquiry, NAMES)
    assert (health.state, health.slow) == (BackendState.FAILED, False)
    assert "/nonexistent/engine.sock" in health.failure
    await inquiry.aclose()


@pytest.mark.parametrize("said", [answer(b"", status=501), answer(b"go_goroutines 7\n")])
async def test_endpoint_without_numbers_says_so(said: bytes) -> None:
    async with serve(says(said)) as peer:
        inquiry = Inquiry(HttpClient(peer.address))
        with pytest.raises(BackendProtocolError, match="GET /metrics"):
            await inquiry.load()
        await inquiry.aclose()
