"""Answers passed on, failures told in the dialect, and nothing left behind whenever the client leaves."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from backends.base import Usage
from backends.errors import (
    BackendError,
    BackendLoading,
    BackendOverloaded,
    BackendProtocolError,
    BackendTimeout,
    BackendUnavailable,
    ContextLengthExceeded,
    EngineStartFailed,
    InvalidRequest,
)
from tests.fakes import FakeBackend, Step, chat_body, chat_events
from tests.gateway.running import CHAT, JSON, body, request, serving

EVENTS = chat_events("Hel", "lo", usage=Usage(5, 2, 1))
# A stream that gets all of them.
STREAM: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


def events(text: str) -> list[Any]:
    """The data of every event of a stream; [DONE] stays text."""
    found = [event.removeprefix("data: ") for event in text.split("\n\n") if event]
    return [event if event == "[DONE]" else json.loads(event) for event in found]


async def test_json_answer_is_passed_on_byte_for_byte() -> None:
    async with serving(FakeBackend()) as gateway:
        response = await gateway.chat()
        assert response.status_code == 200
        assert response.content == chat_body()
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-upshift-backend"] == "fake"
        assert response.headers["x-upshift-reason"] == "only"
        assert int(response.headers["openai-processing-ms"]) >= 0
        assert response.headers["x-request-id"].startswith("req-")


async def test_engine_gets_the_body_as_it_was_sent() -> None:
    backend = FakeBackend()
    async with serving(backend) as gateway:
        sent = b'{ "model":"alias",\n "messages": [], "unknown_field": 1e3 }'
        await gateway.client.post(CHAT, content=sent, headers=JSON | {"x-request-id": "mine-1"})
        assert backend.requests[0].body == sent
        assert (backend.requests[0].model, backend.requests[0].request_id) == ("alias", "mine-1")
        await gateway.client.post("/v1/completions", json={"model": "fake", "prompt": "x"})
        assert [r.operation for r in backend.requests] == ["chat", "completion"]


async def test_length_is_passed_on_and_connection_headers_are_not() -> None:
    content = chat_body()
    headers = [
        (b"Content-Type", b"application/json"),
        (b"Content-Length", b"%d" % len(content)),
        (b"connection", b"close"),
        (b"keep-alive", b"5"),
        (b"server", b"engine/1"),
        (b"set-cookie", b"a=b"),
    ]
    async with serving(FakeBackend(script=[content[:10], content[10:]], headers=headers)) as gateway:
        response = await gateway.chat()
        assert response.content == content
        assert response.headers["content-length"] == str(len(content))
        assert not {"connection", "keep-alive", "server", "set-cookie", "transfer-encoding"} & set(response.headers)


async def test_stream_is_passed_on_byte_for_byte() -> None:
    async with serving(FakeBackend(script=EVENTS)) as gateway:
        response = await gateway.chat(**STREAM)
        assert response.content == b"".join(EVENTS)
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["cache-control"] == "no-cache"
        assert "content-length" not in response.headers


@pytest.mark.parametrize("size", [1, 7, 100_000])
async def test_usage_that_nobody_asked_for_is_counted_and_not_shown(size: int) -> None:
    events = b"".join(chat_events("Hel", "lo", usage=Usage(31, 17)))
    backend = FakeBackend(script=[events[start : start + size] for start in range(0, len(events), size)])
    async with serving(backend) as gateway:
        response = await gateway.chat(stream=True)
        assert response.content == b"".join(chat_events("Hel", "lo"))
        assert (await gateway.chat(**STREAM)).content == events
        await gateway.settled()
        tokens = {(line["prompt_tokens"], line["completion_tokens"]) for line in gateway.lines()}
        assert tokens == {(31, 17)}


async def test_events_reach_the_client_before_the_next_one_exists() -> None:
    more = asyncio.Event()
    async with serving(FakeBackend(script=[EVENTS[0], more, *EVENTS[1:]])) as gateway:
        async with asyncio.timeout(5), gateway.client.stream("POST", CHAT, json=body(**STREAM)) as response:
            pieces = response.aiter_raw()
            assert await anext(pieces) == EVENTS[0]
            assert gateway.upstream.in_flight == 1
            more.set()
            assert b"".join([piece async for piece in pieces]) == b"".join(EVENTS[1:])
        await gateway.settled()
        assert gateway.upstream.in_flight == 0


ERRORS: list[tuple[BaseException, int, str]] = [
    (BackendUnavailable("x"), 503, "backend_unavailable"),
    (BackendLoading("fake is loading", progress=0.5), 503, "model_loading"),
    (BackendOverloaded("x", retry_after_seconds=3), 503, "overloaded"),
    (BackendTimeout("x"), 504, "backend_timeout"),
    (BackendProtocolError("x"), 502, "backend_error"),
    (InvalidRequest("`top_p` is 7", param="top_p"), 400, "invalid_request"),
    (ContextLengthExceeded("too long"), 400, "context_length_exceeded"),
    (EngineStartFailed("x"), 503, "backend_unavailable"),
    (BackendError("x"), 502, "backend_error"),
    (RuntimeError("x"), 500, "internal_error"),
]


@pytest.mark.parametrize(("error", "status", "code"), ERRORS, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("stream", [False, True], ids=["json", "stream"])
async def test_failure_before_the_answer_has_its_status(
    error: BaseException, status: int, code: str, stream: bool
) -> None:
    async with serving(FakeBackend(before=[error])) as gateway:
        response = await gateway.chat(stream=stream)
        assert response.status_code == status
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-request-id"]
        assert response.json()["error"]["code"] == code
        assert gateway.upstream.in_flight == 0
        [line] = gateway.lines()
        assert (line["status"], line["code"], line["model"]) == (status, code, "fake")
        assert (await gateway.chat()).status_code == status, "the connection is as good as before"


async def test_unknown_model_is_named_and_never_a_label() -> None:
    async with serving(FakeBackend()) as gateway:
        response = await gateway.chat(model='gpt-5"x')
        assert response.status_code == 404
        assert response.json()["error"]["code"] == "model_not_found"
        assert response.json()["error"]["param"] == "model"
        labels = {"model": "unknown", "backend": "", "operation": "chat", "code": "404"}
        assert await gateway.metric("upshift_requests_total", **labels) == 1
        assert "gpt-5" not in (await gateway.client.get("/metrics")).text + "".join(gateway.written)


@pytest.mark.parametrize(
    ("content", "headers", "status", "code"),
    [
        (b"{", JSON, 400, "invalid_request"),
        (b"{}", JSON, 400, "invalid_request"),
        (b'{"model":"fake"}', {"content-type": "text/plain"}, 415, "unsupported_media_type"),
        (b'{"model":"fake"}', {}, 415, "unsupported_media_type"),
        (b'{"model":"fake"}', JSON | {"content-encoding": "gzip"}, 415, "unsupported_media_type"),
        (b"x" * 3000, JSON, 413, "request_too_large"),
    ],
)
async def test_refused_bodies_never_reach_the_engine(
    content: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    backend = FakeBackend()
    async with serving(backend, max_body_bytes=2000) as gateway:
        response = await gateway.client.post(CHAT, content=content, headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (status, code)
        assert backend.requests == []


# What the client still sends after a refusal must not reset the connection under the answer.
BIG = b"x" * 4_000_000


@pytest.mark.parametrize(
    "sent",
    [
        request(BIG),
        request(b"", "transfer-encoding: chunked") + b"3d0900\r\n" + BIG + b"\r\n0\r\n\r\n",
        request(BIG).replace(b"application/json", b"text/plain"),
    ],
    ids=["announced", "chunked, no announcement", "wrong type"],
)
async def test_client_that_sends_too_much_still_reads_why(sent: bytes) -> None:
    async with serving(FakeBackend(), max_body_bytes=2000) as gateway:
        answer = await gateway.raw(sent)
        assert answer.startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 415 "))
        assert b"connection: close" in answer
        assert answer.endswith(b"}")


async def test_body_that_does_not_arrive_is_given_up() -> None:
    async with serving(FakeBackend(), body_timeout_seconds=0.05) as gateway:
        answer = await gateway.raw(request(b'{"mod', "content-length: 100"))
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"request_timeout"' in answer


async def test_expectation_is_met_only_where_the_body_is_wanted() -> None:
    async with serving(FakeBackend(), max_body_bytes=2000) as gateway:
        async with gateway.connection() as (reader, writer):
            writer.write(request(b"", "content-length: 3000", "expect: 100-continue"))
            assert (await reader.readline()).startswith(b"HTTP/1.1 413 ")
        async with gateway.connection() as (reader, writer):
            content = json.dumps(body()).encode()
            writer.write(request(b"", f"content-length: {len(content)}", "expect: 100-continue"))
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(content)
            assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")


CUTS: list[tuple[list[Any], str]] = [
    ([EVENTS[0], BackendProtocolError("reset")], "backend_error"),
    ([EVENTS[0]], "backend_error"),
    ([EVENTS[0], EVENTS[1][:20]], "backend_error"),
    ([EVENTS[0], EVENTS[1][:20], BackendProtocolError("reset")], "backend_error"),
    ([EVENTS[0], BackendTimeout("idle")], "backend_timeout"),
    ([EVENTS[0], RuntimeError("bug")], "internal_error"),
    ([], "backend_error"),
]


@pytest.mark.parametrize(("script", "code"), CUTS)
async def test_cut_stream_ends_with_an_error_event_and_without_done(script: list[Any], code: str) -> None:
    backend = FakeBackend(script=script)
    async with serving(backend) as gateway:
        response = await gateway.chat(stream=True)
        assert response.status_code == 200
        *before, last = events(response.text)
        assert b"".join(chunk for chunk in script[:1]).decode() == response.text[: len(script[0]) if script else 0]
        assert last["error"]["code"] == code
        assert "[DONE]" not in before
        assert gateway.upstream.in_flight == backend.open == 0
        [line] = gateway.lines()
        assert (line["code"], line["stream"]) == (code, True)
        assert line["status"] >= 500


VLLM_ERROR = b'data: {"error": {"message": "canary", "type": "InternalServerError", "param": null, "code": 500}}\n\n'


@pytest.mark.parametrize(
    "script",
    [
        [EVENTS[0], VLLM_ERROR, EVENTS[-1]],
        [EVENTS[0] + VLLM_ERROR + EVENTS[-1]],
        [EVENTS[0], VLLM_ERROR],
        [EVENTS[0], VLLM_ERROR, asyncio.Event()],
    ],
    ids=["done", "one read", "cut", "goes silent"],
)
async def test_error_event_of_the_engine_is_a_failure_of_the_engine(script: list[Any]) -> None:
    backend = FakeBackend(script=script)
    async with serving(backend) as gateway:
        response = await gateway.chat(stream=True)
        token, error = events(response.text)
        assert token["choices"][0]["delta"]["content"] == "Hel"
        assert error["error"]["code"] == "backend_error"
        assert "canary" not in response.text
        assert gateway.upstream.in_flight == backend.open == 0
        assert gateway.upstream.breaker.failures == 1
        [line] = gateway.lines()
        assert (line["status"], line["code"]) == (502, "backend_error")


async def test_engine_that_dies_after_its_last_event_has_said_everything() -> None:
    async with serving(FakeBackend(script=[*EVENTS, BackendProtocolError("no final chunk")])) as gateway:
        response = await gateway.chat(**STREAM)
        assert response.content == b"".join(EVENTS)
        assert gateway.lines()[0]["status"] == 200


async def test_json_answer_cut_before_anything_was_passed_on_is_a_clean_error() -> None:
    async with serving(FakeBackend(script=[b'{"a":', BackendProtocolError("reset")])) as gateway:
        response = await gateway.chat()
        assert (response.status_code, response.json()["error"]["code"]) == (502, "backend_error")


async def test_json_answer_cut_later_breaks_the_connection() -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"100")]
    script: list[Step] = [b"a" * 20, b"b" * 20, BackendProtocolError("reset")]
    async with serving(FakeBackend(script=script, headers=headers)) as gateway:
        with pytest.raises(httpx.RemoteProtocolError):
            await gateway.chat()
        assert gateway.lines()[0]["status"] == 502
        assert gateway.upstream.in_flight == 0


async def test_traffic_is_counted() -> None:
    async with serving(FakeBackend(script=EVENTS)) as gateway:
        await gateway.chat(**STREAM, model="alias")
        await gateway.chat(stream=True)
        pair = {"model": "fake", "backend": "fake"}
        assert await gateway.metric("upshift_requests_total", **pair, operation="chat", code="200") == 2
        assert await gateway.metric("upshift_request_duration_seconds_count", **pair, operation="chat") == 2
        assert await gateway.metric("upshift_time_to_first_token_seconds_count", **pair) == 2
        assert await gateway.metric("upshift_gateway_overhead_seconds_count", **pair) == 2
        tokens = [
            await gateway.metric("upshift_tokens_total", **pair, kind=k) for k in ("prompt", "completion", "cached")
        ]
        assert tokens == [10, 4, 2]
        assert await gateway.metric("upshift_in_flight", **pair) == 0
        assert await gateway.metric("upshift_backend_up", **pair) == 1
        [line, _] = gateway.lines()
        assert (line["prompt_tokens"], line["completion_tokens"]) == (5, 2)
        assert line["bytes_out"] == len(b"".join(EVENTS))
        assert line["bytes_in"] == len(json.dumps(body(**STREAM, model="alias"), separators=(",", ":")))
        assert line["first_byte_ms"] <= line["duration_ms"]


async def test_usage_of_a_json_answer_is_counted_and_no_token_is_a_first_one() -> None:
    async with serving(FakeBackend()) as gateway:
        await gateway.chat()
        pair = {"model": "fake", "backend": "fake"}
        assert await gateway.metric("upshift_tokens_total", **pair, kind="completion") == 2
        assert await gateway.metric("upshift_time_to_first_token_seconds_count", **pair) == 0


async def test_nothing_of_the_conversation_is_written_down() -> None:
    async with serving(FakeBackend(script=[chat_body("canary-answer")])) as gateway:
        messages = [{"role": "user", "content": "canary-question"}]
        await gateway.client.post(CHAT, json=body(messages=messages), headers={"authorization": "Bearer canary-key"})
        gateway.lines()
        assert "canary" not in "".join(gateway.written) + (await gateway.client.get("/metrics")).text
