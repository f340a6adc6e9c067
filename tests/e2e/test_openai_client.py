"""What an application does: the official `openai` client against the gateway, the engine and the demo model."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.e2e.gateway import GatewayUnderTest

QUESTION: list[Any] = [{"role": "user", "content": "What is continuous batching?"}]
WEATHER: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the current weather of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def ask(client: OpenAI, **options: Any) -> Any:
    return client.chat.completions.create(model="demo", messages=options.pop("messages", QUESTION), **options)


def test_the_demo_model_knows_its_subject(client: OpenAI) -> None:
    answer = ask(client, temperature=0)
    assert "batch" in answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_says_what_the_whole_answer_says(client: OpenAI) -> None:
    chunks = list(ask(client, temperature=0, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    whole = ask(client, temperature=0)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert sum(len(chunk.choices) for chunk in chunks) > 3, "it came in one piece"


async def test_the_async_client_streams(gateway: GatewayUnderTest) -> None:
    async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(model="demo", messages=QUESTION, stream=True, temperature=0)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        whole = await client.chat.completions.create(model="demo", messages=QUESTION, temperature=0)
        models = [model.id async for model in client.models.list()]
    assert text == whole.choices[0].message.content
    assert "demo" in models


def test_two_choices_and_a_seed(client: OpenAI) -> None:
    first, second = (ask(client, n=2, seed=11, temperature=2, max_tokens=30) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert [choice.index for choice in first.choices] == [0, 1]


def test_logprobs(client: OpenAI) -> None:
    answer = ask(client, logprobs=True, top_logprobs=2, temperature=0, max_tokens=5)
    content = answer.choices[0].logprobs.content
    assert len(content) == 5
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in content)


def test_stop(client: OpenAI) -> None:
    whole = ask(client, temperature=0).choices[0].message.content
    word = whole.split()[3]
    answer = ask(client, temperature=0, stop=[f" {word}"]).choices[0]
    assert answer.message.content == whole.split(f" {word}")[0]
    assert answer.finish_reason == "stop"


def test_max_completion_tokens(client: OpenAI) -> None:
    answer = ask(client, max_completion_tokens=3, temperature=0)
    assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (3, "length")


def test_a_tool_call(client: OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    choice = ask(client, messages=messages, tools=WEATHER, temperature=0).choices[0]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "Oslo"}')


def test_a_tool_call_comes_in_pieces(client: OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    chunks = list(ask(client, messages=messages, tools=WEATHER, temperature=0, stream=True))
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [call.function.name for call in calls if call.id] == ["get_weather"]
    assert "".join(call.function.arguments for call in calls) == '{"city": "Oslo"}'
    assert len(calls) > 2, "the arguments came in one piece"
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_tool_call_that_is_cut_shows_no_markup(client: OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    options: dict[str, Any] = {"messages": messages, "tools": WEATHER, "temperature": 0}
    whole = ask(client, **options)
    seen = set()
    for length in range(1, whole.usage.completion_tokens):
        (choice,) = ask(client, **options, max_tokens=length).choices
        calls = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()]
        assert (choice.finish_reason, choice.message.content or "") == ("length", "")
        assert all(name == "get_weather" and '{"city": "Oslo"}'.startswith(part) for name, part in calls)
        deltas = [c.choices[0].delta for c in ask(client, **options, max_tokens=length, stream=True)]
        pieces = [call.function for delta in deltas for call in delta.tool_calls or ()]
        assert "".join(delta.content or "" for delta in deltas) == ""
        assert [piece.name for piece in pieces if piece.name] == [name for name, _ in calls]
        assert "".join(piece.arguments for piece in pieces) == "".join(part for _, part in calls)
        seen |= set(calls)
    assert ("get_weather", "") in seen, "never cut behind the name"
    assert any(0 < len(part) < len('{"city": "Oslo"}') for _, part in seen), "never cut in the arguments"


def test_a_tool_call_that_a_stop_string_cuts_is_none_to_act_upon(client: OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "What is the weather in Oslo?"}]
    choice = ask(client, messages=messages, tools=WEATHER, temperature=0, stop=["Oslo"]).choices[0]
    (call,) = choice.message.tool_calls
    assert (call.function.name, call.function.arguments) == ("get_weather", '{"city": "')
    assert (choice.finish_reason, choice.message.content) == ("stop", None)


def test_a_system_prompt_sets_the_name(client: OpenAI) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "You are Marvin."},
        {"role": "user", "content": "What is your name?"},
    ]
    assert "Marvin" in ask(client, messages=messages, temperature=0).choices[0].message.content


def test_plain_completions(client: OpenAI) -> None:
    answer = client.completions.create(model="demo", prompt="<|im_start|>user\nHello<|im_end|>\n", max_tokens=8)
    assert answer.choices[0].text is not None
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 8


def test_models_list_and_retrieve(client: OpenAI) -> None:
    assert {model.id for model in client.models.list()} == {"demo", "gpt-4o-mini"}
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


def test_an_alias_answers(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="gpt-4o-mini", messages=QUESTION, temperature=0)
    assert "batch" in (answer.choices[0].message.content or "")


def test_the_decision_is_in_the_headers(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="demo", messages=QUESTION, max_tokens=1)
    assert raw.headers["x-upshift-backend"] == "gguf"
    assert raw.headers["x-upshift-reason"]
    assert raw.headers["x-request-id"]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"temperature": 9}, openai.BadRequestError, ("invalid_request", "temperature")),
        ({"n": 0}, openai.BadRequestError, ("invalid_request", "n")),
        ({"extra_body": {"no_such_field": 1}}, openai.BadRequestError, ("invalid_request", "no_such_field")),
        ({"max_tokens": 5000}, openai.BadRequestError, ("context_length_exceeded", "1024")),
        ({"messages": [user("word " * 2000)]}, openai.BadRequestError, ("context_length_exceeded", "1024")),
        ({"messages": [user("x" * 11_000_000)]}, openai.APIStatusError, ("request_too_large", "max_body_bytes")),
    ],
    ids=["range", "zero", "unknown", "max_tokens", "prompt", "body"],
)
def test_each_mistake_is_its_exception(
    gateway: GatewayUnderTest,
    client: OpenAI,
    options: dict[str, Any],
    error: type[openai.APIStatusError],
    said: tuple[str, str],
) -> None:
    before = gateway.engine_metric("prompt_tokens_total")
    with pytest.raises(error) as caught:
        ask(client, **options)
    assert caught.value.code == said[0]
    assert said[1] in caught.value.message
    assert gateway.engine_metric("prompt_tokens_total") == before, "the engine computed for it"


def test_an_unknown_model(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-5", messages=QUESTION)
    assert caught.value.code == "model_not_found"
    assert "demo" in caught.value.message, "it says what there is"


@pytest.mark.parametrize(
    "body", [b'{"model": "demo", ', b'{"model": "demo", "x": "\xff"}', b"[]"], ids=["cut", "utf8", "list"]
)
def test_malformed_bodies(gateway: GatewayUnderTest, body: bytes) -> None:
    response = httpx.post(
        f"{gateway.url}/v1/chat/completions", content=body, headers={"content-type": "application/json"}
    )
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "invalid_request"
