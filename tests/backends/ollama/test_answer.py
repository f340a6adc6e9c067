"""NDJSON in, OpenAI's answer out, wherever reads cut the lines."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.base import InferenceRequest, Operation
from backends.errors import BackendProtocolError
from backends.ollama.answer import MAX_LINE_BYTES, OllamaAnswer

DONE = b"data: [DONE]\n\n"
END = {"done": True, "done_reason": "stop", "prompt_eval_count": 7, "eval_count": 3}


def said(**message: Any) -> dict[str, Any]:
    return {"model": "phi3", "message": {"role": "assistant", "content": "", **message}, "done": False}


def lines(*parts: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(part, ensure_ascii=False).encode() + b"\n" for part in parts)


def answer(*, stream: bool, operation: Operation = Operation.CHAT, usage: bool = False) -> OllamaAnswer:
    return OllamaAnswer(InferenceRequest(operation, "llama3", b"", stream, "r1", usage), 1_700_000_000)


def streamed(data: bytes, **options: Any) -> list[dict[str, Any]]:
    translation = answer(stream=True, **options)
    out = translation.feed(data) + translation.finish()
    assert out.endswith(DONE)
    return [json.loads(event.removeprefix(b"data: ")) for event in out.removesuffix(DONE).split(b"\n\n") if event]


def whole(data: bytes, **options: Any) -> dict[str, Any]:
    translation = answer(stream=False, **options)
    assert translation.feed(data) == b""
    body: dict[str, Any] = json.loads(translation.finish())
    return body


def test_whole_answer_is_openais() -> None:
    assert whole(lines(said(content="Hel"), said(content="lo"), END)) == {
        "id": "chatcmpl-r1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "llama3",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello"},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
    }


def test_stream_begins_with_the_role_and_ends_with_reason_and_usage() -> None:
    events = streamed(lines(said(content="Hel"), said(content="lo"), END), usage=True)
    assert [choice for event in events for choice in event["choices"]] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None},
        {"index": 0, "delta": {"content": "Hel"}, "finish_reason": None},
        {"index": 0, "delta": {"content": "lo"}, "finish_reason": None},
        {"index": 0, "delta": {}, "finish_reason": "stop"},
    ]
    assert events[-1]["usage"] == {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    assert {event["object"] for event in events} == {"chat.completion.chunk"}


def test_tool_call_gets_an_id_and_its_arguments_as_text() -> None:
    call = {"function": {"name": "weather", "arguments": {"city": "Zürich"}}}
    data = lines(said(tool_calls=[call]), said(tool_calls=[{**call, "id": "own"}]), END)
    message = whole(data)["choices"][0]
    assert message["finish_reason"] == "tool_calls"
    assert message["message"]["content"] is None
    assert message["message"]["tool_calls"] == [
        {
            "id": "call_r1_0",
            "type": "function",
            "function": {"name": "weather", "arguments": '{"city":"Zürich"}'},
        },
        {"id": "own", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Zürich"}'}},
    ]
    deltas = [event["choices"][0]["delta"] for event in streamed(data) if event["choices"]]
    assert [call["index"] for delta in deltas for call in delta.get("tool_calls", [])] == [0, 1]


def test_thoughts_and_logprobs_come_along() -> None:
    logprobs = [{"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": []}]
    data = lines(said(thinking="Hm"), {**said(content="Hi"), "logprobs": logprobs}, END)
    choice = whole(data)["choices"][0]
    assert choice["message"] == {"role": "assistant", "content": "Hi", "reasoning": "Hm"}
    assert choice["logprobs"] == {"content": logprobs}
    choices = [event["choices"][0] for event in streamed(data)]
    assert [choice["delta"].get("reasoning") for choice in choices] == [None, "Hm", None, None]
    assert choices[2]["logprobs"] == {"content": logprobs}


def test_completion_has_text() -> None:
    data = lines({"response": "Once", "done": False}, {"response": "", **END, "done_reason": "length"})
    body = whole(data, operation=Operation.COMPLETION)
    assert (body["object"], body["choices"][0]["text"], body["choices"][0]["finish_reason"]) == (
        "text_completion",
        "Once",
        "length",
    )
    choices = [event["choices"][0] for event in streamed(data, operation=Operation.COMPLETION)]
    assert [(choice["text"], choice["finish_reason"]) for choice in choices] == [("Once", None), ("", "length")]


def test_counts_that_are_left_out_are_zero_and_odd_ones_too() -> None:
    body = whole(lines({"done": True, "done_reason": "load", "eval_count": -1}))
    assert body["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    assert body["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": "stop",
    }


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        pytest.param(b"", "before it was done", id="nothing"),
        pytest.param(lines(said(content="Hi")), "before it was done", id="cut-after-a-line"),
        pytest.param(lines(said(content="Hi")) + b'{"mess', "not JSON", id="cut-in-a-line"),
        pytest.param(b"<html>\n", "not JSON", id="html"),
        pytest.param(b"[1]\n", "not a JSON object", id="list"),
        pytest.param(lines({"error": "CUDA error"}), "CUDA error", id="error-line"),
        pytest.param(lines(said(tool_calls=[{"id": 1}])), "without a function", id="broken-call"),
        pytest.param(b"[" * 200_000 + b"\n", "not JSON", id="deep"),
        pytest.param(b"x" * (MAX_LINE_BYTES + 1), "without end", id="endless"),
    ],
)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_what_is_no_answer_never_ends_well(data: bytes, cause: str, stream: bool) -> None:
    translation = answer(stream=stream)
    with pytest.raises(BackendProtocolError, match=cause):
        translation.feed(data) + translation.finish()


@given(cuts=st.lists(st.integers(0, 400), max_size=8), stream=st.booleans())
def test_reads_may_cut_anywhere(cuts: list[int], stream: bool) -> None:
    data = lines(said(content="Grüße"), said(content=" 🙂\n\n"), said(thinking="x"), END)
    at_once = answer(stream=stream)
    expected = at_once.feed(data) + at_once.finish()
    translation, out = answer(stream=stream), b""
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for start, end in itertools.pairwise(edges):
        out += translation.feed(data[start:end])
    assert out + translation.finish() == expected
