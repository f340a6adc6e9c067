from __future__ import annotations

import asyncio
import json

import pytest

from backends.base import BackendResponse, BackendState, InferenceRequest, Operation
from backends.errors import (
    BackendError,
    BackendLoading,
    BackendOverloaded,
    BackendProtocolError,
    BackendUnavailable,
    ContextLengthExceeded,
    InvalidRequest,
)
from backends.http import HttpClient
from backends.openai import OpenAIBackend
from tests.backends.peer import Script, Talk, answer, says, says_and_closes, serve
from tests.fakes import body_of

JSON = b"content-type: application/json"
REQUEST = InferenceRequest(Operation.CHAT, "demo", b'{"model":"demo"}', False, "req-1")


def backend_for(client: HttpClient) -> OpenAIBackend:
    return OpenAIBackend("engine", client, state=lambda: BackendState.READY)


async def closed_body(response: BackendResponse) -> bytes:
    try:
        return await body_of(response)
    finally:
        response.close()


async def refusal_of(script: Script) -> BackendError:
    """What `send` raises when the endpoint plays `script`."""
    async with serve(script) as peer:
        client = HttpClient(peer.address)
        with pytest.raises(BackendError) as caught:
            await backend_for(client).send(REQUEST)
        await client.aclose()
        assert caught.value.backend == "engine"
        return caught.value


@pytest.mark.parametrize(
    ("operation", "path"),
    [(Operation.CHAT, "/v1/chat/completions"), (Operation.COMPLETION, "/v1/completions")],
)
async def test_body_goes_to_the_operations_path_as_it_is(operation: Operation, path: str) -> None:
    async def script(talk: Talk) -> None:
        head, body = await talk.request()
        await talk.send(answer(head + body, JSON))

    async with serve(script) as peer:
        client = HttpClient(peer.address)
        response = await backend_for(client).send(REQUEST._replace(operation=operation, body=b' {"model" : "demo"}\n'))
        head, _, body = (await closed_body(response)).partition(b"\r\n\r\n")
        assert body == b' {"model" : "demo"}\n'
        assert head.decode().split("\r\n") == [
            f"POST {path} HTTP/1.1",
            "host: localhost",
            "content-type: application/json",
            "x-request-id: req-1",
            "content-length: 20",
        ]
        await client.aclose()


async def test_only_end_to_end_headers_are_forwarded() -> None:
    async def script(talk: Talk) -> None:
        head, _ = await talk.request()
        await talk.send(answer(head, JSON))

    refused = b"Host Content-Length Transfer-Encoding Connection TE Upgrade Expect Authorization X-Api-Key Cookie X-Hop"
    headers = [(name, b"x-hop, keep-alive" if name == b"Connection" else b"1") for name in refused.split()]
    async with serve(script) as peer:
        client = HttpClient(peer.address)
        request = REQUEST._replace(headers=(*headers, (b"traceparent", b"00-1")))
        lines = (await closed_body(await backend_for(client).send(request))).rstrip().split(b"\r\n")[1:]
        assert lines == [
            b"host: localhost",
            b"content-type: application/json",
            b"x-request-id: req-1",
            b"traceparent: 00-1",
            b"content-length: 16",
        ]
        await client.aclose()


async def test_of_the_headers_type_and_length_are_kept() -> None:
    hops = b"Keep-Alive: timeout=5", b"Connection: keep-alive, X-Hop", b"X-Hop: 1"
    message = answer(b"{}", JSON, *hops, b"X-Engine: 1")
    async with serve(says(message)) as peer:
        client = HttpClient(peer.address)
        response = await backend_for(client).send(REQUEST)
        assert (response.content_type, response.content_bytes) == (b"application/json", 2)
        assert (response.status, await closed_body(response)) == (200, b"{}")
        await client.aclose()


async def test_stream_is_passed_on_as_it_comes() -> None:
    more = asyncio.Event()

    async def script(talk: Talk) -> None:
        await talk.request()
        head = (
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        await talk.send(head + b"8\r\ndata: 1\n\r\n")
        await more.wait()
        await talk.send(b"1\r\n\n\r\n0\r\n\r\n")

    async with serve(script) as peer:
        client = HttpClient(peer.address)
        response = await backend_for(client).send(REQUEST._replace(stream=True))
        chunks = aiter(response.chunks)
        assert await anext(chunks) == b"data: 1\n"
        more.set()
        assert [chunk async for chunk in chunks] == [b"\n"]
        response.close()
        await client.aclose()


def _says_error(status: int, code: object, *headers: bytes, **more: object) -> Script:
    error = {"message": "what\nit says", "type": "t", "param": None, "code": code} | more
    return says(answer(json.dumps({"error": error}).encode(), JSON, *headers, status=status))


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_request", InvalidRequest),
        (400, 400, InvalidRequest),
        (400, "context_length_exceeded", ContextLengthExceeded),
        (404, "model_not_found", InvalidRequest),
        (413, "request_too_large", InvalidRequest),
        (422, None, InvalidRequest),
        (401, "invalid_api_key", BackendProtocolError),
        (403, None, BackendProtocolError),
        (429, "rate_limit_exceeded", BackendOverloaded),
        (503, "overloaded", BackendOverloaded),
        (503, "model_loading", BackendLoading),
        (500, "internal", BackendProtocolError),
        (502, None, BackendProtocolError),
        (504, None, BackendProtocolError),
        (302, None, BackendProtocolError),
        (201, None, BackendProtocolError),
    ],
)
async def test_every_other_status_is_the_error_it_means(status: int, code: object, kind: type[BackendError]) -> None:
    error = await refusal_of(_says_error(status, code))
    assert type(error) is kind
    # Its words are for the client whose request they are about, and for no log: they may quote the prompt.
    for_the_client = issubclass(kind, InvalidRequest | BackendLoading)
    assert error.message.endswith("what it says") if for_the_client else f"status {status}" in error.message
    assert for_the_client or "says" not in error.message
    assert for_the_client or code in (None, "overloaded", "rate_limit_exceeded") or f"({code})" in error.message


async def test_refused_field_is_named() -> None:
    error = await refusal_of(_says_error(400, "invalid_request", param="temperature"))
    assert isinstance(error, InvalidRequest)
    assert error.param == "temperature"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (b"retry-after: 7", 7.0),
        (b"retry-after: 99999999", 3600.0),
        (b"retry-after: -1", None),
        (b"retry-after: soon", None),
        (b"retry-after: 999999999999999999999", None),
        (b"x: y", None),
    ],
)
async def test_retry_after_is_taken_over_within_reason(header: bytes, seconds: float | None) -> None:
    assert (await refusal_of(_says_error(429, None, header))).retry_after_seconds == seconds


@pytest.mark.parametrize(("said", "progress"), [(0.42, 0.42), (7.0, 1.0), (-1.0, 0.0), (float("nan"), 0.0), ("x", 0.0)])
async def test_loading_carries_its_progress(said: object, progress: float) -> None:
    error = await refusal_of(_says_error(503, "model_loading", progress=said))
    assert isinstance(error, BackendLoading)
    assert (error.progress, error.retry_after_seconds) == (progress, 1.0)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"<html>Bad Gateway</html>", id="html"),
        pytest.param(b"[]", id="list"),
        pytest.param(b'{"error": "text"}', id="text"),
        pytest.param(b'{"error": {"message": {"a": 1}, "param": []}}', id="odd-types"),
        pytest.param(b'{"error": {"message": "\xff\xfe"}}', id="not-utf-8"),
        pytest.param(b"[" * 100_000, id="deep"),
    ],
)
async def test_error_body_that_says_nothing_still_gives_the_status(body: bytes) -> None:
    error = await refusal_of(says(answer(body, status=400)))
    assert (type(error), error.message) == (InvalidRequest, "The engine answered with status 400.")


async def test_error_text_cannot_carry_control_characters_or_novels() -> None:
    text = "\x1b[31m\r\nx-evil: 1\u202e" + "x" * 10_000
    error = await refusal_of(_says_error(400, None, message=text))
    assert error.message.startswith("[31m  x-evil: 1 x")
    assert error.message.isprintable()
    assert len(error.message) <= 2000


async def test_endless_error_body_is_not_read_to_its_end() -> None:
    stopped = asyncio.Event()

    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.send(b"HTTP/1.1 400 No\r\ntransfer-encoding: chunked\r\n\r\n")
        try:
            while True:
                await talk.send(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        finally:
            stopped.set()

    async with serve(script) as peer:
        client = HttpClient(peer.address)
        async with asyncio.timeout(5):
            with pytest.raises(InvalidRequest):
                await backend_for(client).send(REQUEST)
            await stopped.wait()
        await client.aclose()


@pytest.mark.parametrize(
    "message",
    [
        pytest.param(answer(b"<html>", b"content-type: text/html"), id="html"),
        pytest.param(answer(b"{}"), id="no-content-type"),
        pytest.param(answer(b"\x1f\x8b", JSON, b"content-encoding: gzip"), id="compressed"),
        pytest.param(b"nonsense", id="no-http"),
        pytest.param(b"HTTP/1.1 400 No\r\ncontent-length: 9\r\n\r\nshort", id="cut-error"),
    ],
)
async def test_answer_that_is_not_openais_is_a_protocol_error(message: bytes) -> None:
    assert type(await refusal_of(says_and_closes(message))) is BackendProtocolError


async def test_refused_request_leaves_the_connection_usable() -> None:
    turn = iter([answer(b"{}", JSON, status=429), answer(b"{}", JSON)])

    async def script(talk: Talk) -> None:
        for message in turn:
            await talk.request()
            await talk.send(message)
        await talk.gone()

    async with serve(script) as peer:
        client = HttpClient(peer.address)
        with pytest.raises(BackendOverloaded):
            await backend_for(client).send(REQUEST)
        assert await closed_body(await backend_for(client).send(REQUEST)) == b"{}"
        assert peer.connections == 1
        await client.aclose()


async def test_cancelled_call_ends_the_engines_work() -> None:
    called, gone = asyncio.Event(), asyncio.Event()

    async def script(talk: Talk) -> None:
        await talk.request()
        called.set()
        await talk.gone()
        gone.set()

    async with serve(script) as peer:
        client = HttpClient(peer.address)
        call = asyncio.create_task(backend_for(client).send(REQUEST))
        await called.wait()
        call.cancel()
        await gone.wait()
        with pytest.raises(asyncio.CancelledError):
            await call
        await client.aclose()


async def test_missing_endpoint_is_unavailable_under_the_backends_name() -> None:
    client = HttpClient("unix:/nonexistent/engine.sock")
    with pytest.raises(BackendUnavailable) as caught:
        await backend_for(client).send(REQUEST)
    assert caught.value.backend == "engine"
    await client.aclose()


def test_state_is_asked_for_each_time() -> None:
    states = iter([BackendState.STARTING, BackendState.READY])
    backend = OpenAIBackend("engine", HttpClient("unix:/nonexistent"), state=lambda: next(states))
    assert [backend.state, backend.state] == [BackendState.STARTING, BackendState.READY]
