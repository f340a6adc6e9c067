"""OpenAI bodies as Ollama gets them, and what is refused because it would be lost."""

from __future__ import annotations

import json
from typing import Any

import pytest

from backends.base import InferenceRequest, Operation
from backends.errors import InvalidRequest
from backends.ollama.request import native_request

HELLO = [{"role": "user", "content": "Hi"}]


def native(operation: Operation = Operation.CHAT, context: int | None = None, **fields: Any) -> dict[str, Any]:
    if operation is Operation.CHAT:
        fields.setdefault("messages", HELLO)
    body = json.dumps({"model": "llama3", **fields}).encode()
    return native_request(InferenceRequest(operation, "llama3", body, False, "r"), "phi3", context)


def test_plain_chat_names_ollamas_model_and_lets_nothing_be_cut() -> None:
    assert native(user="u", metadata={"a": "b"}, store=False) == {
        "model": "phi3",
        "stream": True,
        "truncate": False,
        "shift": False,
        "options": {},
        "messages": [{"role": "user", "content": "Hi"}],
    }


def test_every_sampling_field_becomes_its_option() -> None:
    sampling: dict[str, Any] = {"temperature": 0.2, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "seed": 7}
    penalties: dict[str, Any] = {"frequency_penalty": 0.5, "presence_penalty": -0.5}
    found = native(context=8192, **sampling, **penalties, repetition_penalty=1.1, stop="END", max_tokens=5)
    options = found["options"]
    assert options == {
        **sampling,
        **penalties,
        "repeat_penalty": 1.1,
        "stop": ["END"],
        "num_predict": 5,
        "num_ctx": 8192,
    }
    assert native(max_tokens=1, max_completion_tokens=9)["options"] == {"num_predict": 9}
    assert native(stop=["a", "b"], temperature=None)["options"] == {"stop": ["a", "b"]}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"format": "json"}),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
            {"format": {"type": "object"}},
        ),
        ({"reasoning_effort": "none"}, {"think": False}),
        ({"reasoning_effort": "high"}, {"think": "high"}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": True, "top_logprobs": 3}),
        ({"tools": [{"type": "function"}], "tool_choice": "auto"}, {"tools": [{"type": "function"}]}),
        ({"tools": [{"type": "function"}], "tool_choice": "none"}, {}),
        ({"n": 1, "logit_bias": {}, "parallel_tool_calls": True}, {}),
    ],
    ids=str,
)
def test_fields_are_carried_over(fields: dict[str, Any], expected: dict[str, Any]) -> None:
    assert native(**fields) == native() | expected


def test_conversation_with_tools_and_images_is_translated() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Bern"}'}}
    found = native(
        messages=[
            {"role": "developer", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "What is "},
                    {"type": "text", "text": "this?"},
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
                ],
            },
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        ]
    )
    assert found["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is this?", "images": ["aGk="]},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [
                {"id": "call_1", "function": {"index": 0, "name": "weather", "arguments": {"city": "Bern"}}}
            ],
        },
        {"role": "tool", "content": "sunny", "tool_call_id": "call_1", "tool_name": "weather"},
    ]


def test_completion_is_the_prompt_as_it_is_unless_a_middle_is_to_be_filled() -> None:
    assert native(Operation.COMPLETION, prompt="Once") == {
        "model": "phi3",
        "stream": True,
        "truncate": False,
        "shift": False,
        "options": {},
        "prompt": "Once",
        "raw": True,
    }
    assert native(Operation.COMPLETION, prompt=["Once"])["prompt"] == "Once"
    filled = native(Operation.COMPLETION, prompt="def f(", suffix="return 1")
    assert (filled["suffix"], filled["raw"]) == ("return 1", False)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logit_bias": {"5": 1}}, "logit_bias"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"parallel_tool_calls": False}, "parallel_tool_calls"),
        ({"guided_json": {}}, "guided_json"),
        ({"messages": "hello"}, "messages"),
        *(({name: value}, "max_tokens") for name in ("max_tokens", "max_completion_tokens") for value in (0, -1)),
        ({"messages": []}, "messages"),
        ({"messages": [7]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0]"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"reasoning_effort": "extreme"}, "reasoning_effort"),
        ({"reasoning_effort": ["high"]}, "reasoning_effort"),
    ],
    ids=str,
)
def test_what_would_be_lost_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        native(**fields)
    assert caught.value.param == param
    assert f"`{param}" in caught.value.message


@pytest.mark.parametrize(
    "url",
    ["https://example.com/cat.png", "file:///etc/passwd", "data:image/png,hi", "data:image/png;base64,%%", 7, None],
)
def test_images_are_given_and_never_fetched(url: object) -> None:
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(InvalidRequest, match="image"):
        native(messages=[{"role": "user", "content": parts}])


@pytest.mark.parametrize("arguments", ["[1]", "not json", 7], ids=str)
def test_tool_calls_of_the_past_must_be_objects(arguments: object) -> None:
    calls = [{"id": "a", "function": {"name": "f", "arguments": arguments}}]
    with pytest.raises(InvalidRequest, match="tool_calls"):
        native(messages=[{"role": "assistant", "content": "", "tool_calls": calls}])


@pytest.mark.parametrize("prompt", [["a", "b"], [1, 2], 7, None], ids=str)
def test_completion_has_one_text(prompt: object) -> None:
    with pytest.raises(InvalidRequest, match="`prompt`"):
        native(Operation.COMPLETION, prompt=prompt)
