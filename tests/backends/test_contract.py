"""What the gateway relies on, whatever engine is behind the seam: one suite, held to each in contract.py's KINDS."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from backends.base import BackendResponse, BackendState, InferenceRequest, Operation
from backends.errors import BackendProtocolError, BackendUnavailable, ContextLengthExceeded, InvalidRequest
from backends.sse import UsageSniffer
from tests.backends.contract import KINDS, MORTALS, Subject
from tests.fakes import body_of
from tests.vllm import MODEL

LIMIT_SECONDS = 60.0
DONE = b"data: [DONE]\n\n"

pytestmark = pytest.mark.engine


@pytest.fixture(params=[pytest.param(kind, marks=[pytest.mark.vllm] * (kind == "vllm")) for kind in KINDS])
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    async with KINDS[request.param](request) as subject:
        yield subject


def ask(*, stream: bool = False, operation: Operation = Operation.CHAT, **fields: Any) -> InferenceRequest:
    """Sixteen tokens about batching, always the same ones."""
    body: dict[str, Any] = {"model": MODEL, "max_tokens": 16, "temperature": 0, **fields}
    if operation is Operation.CHAT:
        body.setdefault("messages", [{"role": "user", "content": "What is continuous batching?"}])
    else:
        body.setdefault("prompt", "Continuous batching")
    if stream:
        body |= {"stream": True}
    usage = (fields.get("stream_options") or {}).get("include_usage", False)
    return InferenceRequest(operation, body["model"], json.dumps(body).encode(), stream, "contract-1", usage)


def long(subject: Subject, *, stream: bool) -> InferenceRequest:
    """An answer that takes its time."""
    return ask(stream=stream, **{"max_tokens": 400, **subject.endless})


async def whole(subject: Subject, request: InferenceRequest) -> bytes:
    async with asyncio.timeout(LIMIT_SECONDS):
        response = await subject.backend.send(request)
        try:
            return await body_of(response)
        finally:
            response.close()


def events(body: bytes) -> list[dict[str, Any]]:
    """The events of a stream that has ended well."""
    assert body.endswith(DONE)
    blocks = [block for block in body.removesuffix(DONE).split(b"\n\n") if block and not block.startswith(b":")]
    return [json.loads(block.removeprefix(b"data: ")) for block in blocks]


async def is_idle(subject: Subject) -> None:
    """Returns once the engine says that it computes nothing."""
    async with asyncio.timeout(LIMIT_SECONDS):
        while await subject.running():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)


async def test_whole_answer_has_text_reason_and_usage(subject: Subject) -> None:
    response = await subject.backend.send(ask())
    assert (response.status, response.content_type.partition(b";")[0]) == (200, b"application/json")
    answer = json.loads(await body_of(response))
    response.close()
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"]
    assert choice["finish_reason"] in {"stop", "length"}
    usage = answer["usage"]
    assert 0 < usage["completion_tokens"] <= 16
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


async def test_stream_says_what_the_whole_answer_says(subject: Subject) -> None:
    answer = json.loads(await whole(subject, ask()))
    options = {"include_usage": True}
    response = await subject.backend.send(ask(stream=True, stream_options=options))
    assert response.content_type.partition(b";")[0] == b"text/event-stream"
    body = await body_of(response)
    response.close()
    found = events(body)
    choices = [choice for event in found for choice in event["choices"]]
    assert (
        "".join(choice["delta"].get("content") or "" for choice in choices)
        == (answer["choices"][0]["message"]["content"])
    )
    reasons = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    assert reasons == [answer["choices"][0]["finish_reason"]]
    assert found[-1]["choices"] == []
    sniffer = UsageSniffer()
    sniffer.feed(body)
    assert sniffer.usage is not None
    counts = (sniffer.usage.prompt_tokens, sniffer.usage.completion_tokens)
    assert counts == (answer["usage"]["prompt_tokens"], answer["usage"]["completion_tokens"])


async def test_usage_comes_only_when_it_was_asked_for(subject: Subject) -> None:
    found = events(await whole(subject, ask(stream=True)))
    assert not any(event.get("usage") for event in found)


async def test_completion_continues_the_prompt(subject: Subject) -> None:
    if subject.scripted:
        pytest.skip("it knows chat only")
    answer = json.loads(await whole(subject, ask(operation=Operation.COMPLETION)))
    assert answer["choices"][0]["text"]
    found = events(await whole(subject, ask(operation=Operation.COMPLETION, stream=True)))
    assert "".join(choice["text"] for event in found for choice in event["choices"]) == answer["choices"][0]["text"]


async def test_cap_on_the_answer_holds(subject: Subject) -> None:
    if subject.scripted:
        pytest.skip("it answers as scripted")
    answer = json.loads(await whole(subject, ask(max_tokens=3, **subject.endless)))
    assert (answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"]) == (3, "length")


async def test_client_that_leaves_a_stream_ends_the_work(subject: Subject) -> None:
    response = await subject.backend.send(long(subject, stream=True))
    await anext(response.chunks)
    response.close()
    response.close()
    await is_idle(subject)
    assert json.loads(await whole(subject, ask()))["choices"]


async def test_call_that_is_cancelled_ends_the_work(subject: Subject) -> None:
    if subject.scripted:
        pytest.skip("it answers at once")
    calls = [asyncio.create_task(subject.backend.send(long(subject, stream=False))) for _ in range(3)]
    async with asyncio.timeout(LIMIT_SECONDS):
        # vLLM tells every now and then: on a quick machine it may be done before it has said that it began.
        while not await subject.running() and not all(call.done() for call in calls):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.001)
    for call in calls:
        call.cancel()
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, BackendResponse):  # it was done before it was cancelled
            result.close()
        else:
            assert isinstance(result, asyncio.CancelledError)
    await is_idle(subject)


async def test_many_at_once_are_all_answered(subject: Subject) -> None:
    alone = json.loads(await whole(subject, ask()))["choices"][0]["message"]["content"]
    answers = await asyncio.gather(*(whole(subject, ask(stream=bool(number % 2))) for number in range(12)))
    for number, body in enumerate(answers):
        if number % 2:
            assert events(body)
        else:
            assert json.loads(body)["choices"][0]["message"]["content"][:1] == alone[:1]
    await is_idle(subject)


async def test_reader_that_is_slow_misses_nothing(subject: Subject) -> None:
    slow = await subject.backend.send(ask(stream=True, **{"max_tokens": 100, **subject.endless}))
    first = await anext(slow.chunks)
    assert json.loads(await whole(subject, ask()))["choices"]
    rest = b"".join([chunk async for chunk in slow.chunks])
    slow.close()
    choices = [choice for event in events(first + rest) for choice in event["choices"]]
    assert [choice["finish_reason"] for choice in choices if choice.get("finish_reason")] != []


async def test_unknown_model_is_the_requests_fault(subject: Subject) -> None:
    if subject.any_model:
        pytest.skip("it answers to every name")
    with pytest.raises(InvalidRequest) as caught:
        await whole(subject, ask(model="nobody"))
    assert "nobody" in caught.value.message
    assert not caught.value.retryable


async def test_value_of_the_wrong_kind_is_the_requests_fault(subject: Subject) -> None:
    if subject.scripted:
        pytest.skip("it looks at nothing")
    with pytest.raises(InvalidRequest):
        await whole(subject, ask(messages="hello"))
    assert json.loads(await whole(subject, ask()))["choices"]


async def test_prompt_that_does_not_fit_is_told_apart(subject: Subject) -> None:
    if subject.scripted:
        pytest.skip("it has no context")
    with pytest.raises(ContextLengthExceeded) as caught:
        await whole(subject, ask(messages=[{"role": "user", "content": "word " * 6000}]))
    assert caught.value.message
    assert json.loads(await whole(subject, ask()))["choices"]


async def _to_the_end(response: BackendResponse) -> None:
    async for chunk in response.chunks:
        assert DONE not in chunk


@pytest.mark.parametrize("kind", MORTALS)
async def test_engine_that_is_killed_ends_no_stream_cleanly(kind: str, tmp_path: Path) -> None:
    async with MORTALS[kind](tmp_path) as subject:
        response = await subject.backend.send(long(subject, stream=True))
        await anext(response.chunks)
        assert subject.kill is not None
        await subject.kill()
        with pytest.raises(BackendProtocolError):
            await _to_the_end(response)
        response.close()
        async with asyncio.timeout(LIMIT_SECONDS):
            while subject.backend.state is BackendState.READY:  # noqa: ASYNC110 - nobody tells
                await asyncio.sleep(0.01)
        with pytest.raises(BackendUnavailable):
            await subject.backend.send(ask())
