"""The engine process over HTTP: answers, refusals, limits, cancellation. A real model with random weights."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from backends.gguf.demo.corpus import QUESTIONS
from tests.engine import EngineUnderTest, running_engine, wait_for

HELLO: dict[str, Any] = {"messages": [{"role": "user", "content": "hello there"}], "temperature": 0, "max_tokens": 12}


ASKED = [page["ask"][0] for page in QUESTIONS[:24]]
JSON = {"content-type": "application/json"}
LAMP = {"type": "object", "properties": {"watts": {"type": "integer"}, "on": {"type": "boolean"}}, "required": ["on"]}
TOOL = {"type": "function", "function": {"name": "set_lamp", "parameters": LAMP}}


def schema(of: dict[str, Any]) -> dict[str, Any]:
    """A response_format."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": of}}


def chat(engine: EngineUnderTest, **fields: Any) -> httpx.Response:
    return engine.client.post("/v1/chat/completions", json={**HELLO, **fields})


def complete(engine: EngineUnderTest, **fields: Any) -> httpx.Response:
    return engine.client.post("/v1/completions", json={"prompt": "once", "temperature": 0, **fields})


def events(response: httpx.Response) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_stream_and_body_say_the_same(engine: EngineUnderTest) -> None:
    whole = chat(engine).json()
    streamed = events(chat(engine, stream=True, stream_options={"include_usage": True}))
    text = "".join(choice["delta"].get("content", "") for event in streamed for choice in event["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert streamed[0]["choices"][0]["delta"]["role"] == "assistant"
    assert streamed[-2]["choices"][0]["finish_reason"] == "length"
    usage = streamed[-1]["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (whole["usage"]["prompt_tokens"], 12)
    assert {event["id"] for event in streamed} == {streamed[0]["id"]}


def test_a_prompt_seen_before_is_not_computed_again(engine: EngineUnderTest) -> None:
    prompt = "a prompt of its own that nobody else sends " * 4
    first = complete(engine, prompt=prompt).json()["usage"]
    again = complete(engine, prompt=prompt).json()["usage"]
    assert again["prompt_tokens_details"]["cached_tokens"] == first["prompt_tokens"] - 1


def test_prompts_of_other_salts_share_nothing(engine: EngineUnderTest) -> None:
    content = "a prompt that only this test has, and long enough to be found again"
    cached = []
    for salt in ("one", "two", "one", None):
        fields = {} if salt is None else {"cache_salt": salt}
        answer = chat(engine, messages=[{"role": "user", "content": content}], max_tokens=1, **fields).json()
        cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"])
        prompt_tokens = answer["usage"]["prompt_tokens"]
    assert cached[:3] == [0, 0, prompt_tokens - 1]
    assert cached[3] < prompt_tokens - 1


def test_the_same_seed_draws_the_same_and_choices_differ(engine: EngineUnderTest) -> None:
    chat(engine)  # a prompt in the cache is another batch than one that is not, and its last bits are others
    first, second, other = (
        [c["message"]["content"] for c in chat(engine, n=3, seed=seed, temperature=1.5).json()["choices"]]
        for seed in (5, 5, 6)
    )
    assert first == second
    # Choice i draws with seed + i: 5, 6, 7 and 6, 7, 8.
    assert len({*first, *other}) == 4
    assert first[1:] == other[:2]


def test_no_seed_draws_something_new(engine: EngineUnderTest) -> None:
    assert chat(engine, temperature=1.5).json()["choices"] != chat(engine, temperature=1.5).json()["choices"]


async def test_greedy_answers_are_the_same_alone_and_in_a_crowd(tmp_path: Path) -> None:
    """With weights that mean something: among random ones the last bits decide."""
    bodies = [{**HELLO, "messages": [{"role": "user", "content": asked}]} for asked in ASKED]
    with running_engine("demo", tmp_path, "--parallel", "4") as engine:
        alone = [engine.client.post("/v1/chat/completions", json=body).json() for body in bodies]
        async with engine.async_client() as client:
            crowd = await asyncio.gather(*(client.post("/v1/chat/completions", json=body) for body in bodies * 2))
    texts = [answer["choices"][0]["message"]["content"] for answer in alone]
    assert [response.json()["choices"][0]["message"]["content"] for response in crowd] == texts * 2


def test_a_stop_string_ends_the_answer_and_is_not_in_it(engine: EngineUnderTest) -> None:
    text = complete(engine, max_tokens=30).json()["choices"][0]["text"]
    stop = text[10:13]
    choice = complete(engine, max_tokens=30, stop=[stop, "never"]).json()["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert choice["text"] == text[: text.find(stop)]


def test_chat_logprobs_are_logarithms_of_the_distribution(engine: EngineUnderTest) -> None:
    content = chat(engine, logprobs=True, top_logprobs=3).json()["choices"][0]["logprobs"]["content"]
    assert len(content) == 12
    for entry in content:
        top = entry["top_logprobs"]
        assert top[0]["logprob"] == entry["logprob"] <= 0, "greedy takes the most likely token"
        assert [t["logprob"] for t in top] == sorted((t["logprob"] for t in top), reverse=True)


def test_completion_logprobs_have_one_entry_per_token(engine: EngineUnderTest) -> None:
    logprobs = complete(engine, logprobs=2, max_tokens=5).json()["choices"][0]["logprobs"]
    assert [len(logprobs[key]) for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [5] * 4


def test_logit_bias_forces_and_bans_tokens(engine: EngineUnderTest) -> None:
    tokens = engine.client.post("/tokenize", json={"prompt": "e", "add_special_tokens": False}).json()["tokens"]
    assert complete(engine, logit_bias={str(tokens[0]): 100}, max_tokens=4).json()["choices"][0]["text"] == "eeee"
    text = complete(engine, max_tokens=1).json()["choices"][0]["text"]
    (token,) = engine.client.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()["tokens"]
    assert complete(engine, logit_bias={str(token): -100}, max_tokens=1).json()["choices"][0]["text"] != text


def test_penalties_stop_repetition(engine: EngineUnderTest) -> None:
    (e,) = engine.client.post("/tokenize", json={"prompt": "e", "add_special_tokens": False}).json()["tokens"]
    bias = {"logit_bias": {str(e): 4}, "max_tokens": 30}
    plain = complete(engine, **bias).json()["choices"][0]["text"].count("e")
    for penalty in ({"frequency_penalty": 2}, {"presence_penalty": 2}, {"repetition_penalty": 5.0}):
        assert complete(engine, **bias, **penalty).json()["choices"][0]["text"].count("e") < plain, penalty


def test_min_tokens_and_ignore_eos_outlast_the_end_token(engine: EngineUnderTest) -> None:
    bias = {"logit_bias": {"1023": 100}, "max_tokens": 9}  # <|im_end|>
    assert complete(engine, **bias).json()["usage"]["completion_tokens"] == 1
    assert complete(engine, **bias, min_tokens=4).json()["usage"]["completion_tokens"] == 5
    ignored = complete(engine, **bias, ignore_eos=True).json()
    assert ignored["usage"]["completion_tokens"] == 9
    assert ignored["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("cut", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-40}], ids=str)
def test_a_distribution_cut_to_one_token_is_greedy(engine: EngineUnderTest, cut: dict[str, Any]) -> None:
    greedy = complete(engine, max_tokens=20).json()["choices"][0]["text"]
    assert complete(engine, max_tokens=20, **{"temperature": 1.9, **cut}).json()["choices"][0]["text"] == greedy
    assert complete(engine, max_tokens=20, temperature=1.9).json()["choices"][0]["text"] != greedy


async def test_seeded_draws_are_the_same_alone_and_among_32(engine: EngineUnderTest) -> None:
    bodies = [{"prompt": f"number {n}", "seed": n, "temperature": 1, "max_tokens": 12} for n in range(32)]
    alone = [engine.client.post("/v1/completions", json=body).json()["choices"][0]["text"] for body in bodies]
    async with engine.async_client() as client:
        for part in (bodies[:12], bodies[12:24], bodies[24:]):  # 4 slots and 8 places
            crowd = await asyncio.gather(*(client.post("/v1/completions", json=body) for body in part))
            texts = [response.json()["choices"][0]["text"] for response in crowd]
            assert texts == [alone[bodies.index(body)] for body in part]


def test_tool_arguments_that_are_no_json_are_shown_as_they_are(engine: EngineUnderTest) -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "[" * 100_000}}
    messages = [HELLO["messages"][0], {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert chat(engine, messages=messages).status_code == 200


def test_many_choices_of_a_prompt_that_cannot_fit_cost_nothing(engine: EngineUnderTest) -> None:
    before = engine.resident_mib()
    assert complete(engine, prompt=[1] * 300_000, n=12).json()["error"]["code"] == "context_length_exceeded"
    assert engine.resident_mib() - before < 40


def test_several_prompts_as_text_and_as_tokens(engine: EngineUnderTest) -> None:
    tokens = engine.client.post("/tokenize", json={"prompt": "once"}).json()["tokens"]
    by_text = complete(engine, prompt=["once", "upon"]).json()
    by_tokens = complete(engine, prompt=tokens).json()
    assert [choice["index"] for choice in by_text["choices"]] == [0, 1]
    assert by_text["choices"][0]["text"] == by_tokens["choices"][0]["text"]


def test_detokenize_undoes_tokenize(engine: EngineUnderTest) -> None:
    text = "Ünïcode 漢字 and\nlines"
    tokens = engine.client.post("/tokenize", json={"prompt": text}).json()["tokens"]
    assert engine.client.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": text}


def test_every_name_is_listed_and_answers(engine: EngineUnderTest) -> None:
    names = [model["id"] for model in engine.client.get("/v1/models").json()["data"]]
    assert names == ["tiny", "alias"]
    assert [chat(engine, model=name).json()["model"] for name in names] == names


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"model": "gpt-4"}, 404, "model_not_found", "model"),
        ({"messages": []}, 400, "invalid_request", "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, 400, "invalid_request", "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "text": "x"}]}]},
            400,
            "invalid_request",
            "messages.0.content.0.type",
        ),
        ({"n": 13}, 400, "invalid_request", "n"),
        ({"repetition_penalty": 1e-50}, 400, "invalid_request", "repetition_penalty"),
        ({"messages": [{"role": "user", "content": "x" * 9_000_000}]}, 400, "context_length_exceeded", "messages"),
        ({"temperature": 3}, 400, "invalid_request", "temperature"),
        ({"temperature": "hot"}, 400, "invalid_request", "temperature"),
        ({"top_p": 0}, 400, "invalid_request", "top_p"),
        ({"n": 0}, 400, "invalid_request", "n"),
        ({"n": 10**9}, 400, "invalid_request", "n"),
        ({"max_tokens": 0}, 400, "invalid_request", "max_tokens"),
        ({"max_tokens": 2**63}, 400, "invalid_request", "max_tokens"),
        ({"max_tokens": 4096}, 400, "context_length_exceeded", "messages"),
        ({"messages": [{"role": "user", "content": "long " * 3000}]}, 400, "context_length_exceeded", "messages"),
        ({"logit_bias": {"5000": 1}}, 400, "invalid_request", "logit_bias"),
        ({"logit_bias": {"-1": 1}}, 400, "invalid_request", None),
        ({"top_logprobs": 3}, 400, "invalid_request", "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "invalid_request", "top_logprobs"),
        ({"stop": [""]}, 400, "invalid_request", "stop.0"),
        ({"stop": ["x"] * 17}, 400, "invalid_request", "stop"),
        ({"stream_options": {"include_usage": True}}, 400, "invalid_request", "stream_options"),
        ({"seed": 2**70}, 400, "invalid_request", "seed"),
        ({"tools": []}, 400, "invalid_request", "tools"),
        ({"tool_choice": "required"}, 400, "invalid_request", "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, 400, "invalid_request", "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, 400, "invalid_request", "response_format"),
        ({"response_format": schema({"type": "string", "pattern": "a"})}, 400, "invalid_request", "response_format"),
        ({"response_format": schema({"$ref": "#"})}, 400, "invalid_request", "response_format"),
        ({"response_format": {"type": "json_object"}, "tools": [TOOL]}, 400, "invalid_request", "response_format"),
        ({"guided_json": {}}, 400, "invalid_request", "guided_json"),
        ({"min_tokens": 9, "max_tokens": 8}, 400, "invalid_request", "min_tokens"),
        ({"min_tokens": 9, "max_tokens": 10, "max_completion_tokens": 8}, 400, "invalid_request", "min_tokens"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else None,
)
def test_bad_fields_are_refused_by_name(
    engine: EngineUnderTest, fields: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    before = engine.metric("upshift_engine_prompt_tokens_total")
    response = chat(engine, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code), error
    if param is not None:
        assert error["param"] == param, error
    assert engine.metric("upshift_engine_prompt_tokens_total") == before


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"x"', b"\xff\xfe{}", b'{"messages": NaN}', b"[" * 100_000, b'{"a":' * 5000],
    ids=["empty", "cut", "list", "string", "utf16", "nan", "deep-list", "deep-object"],
)
def test_malformed_bodies_are_refused(engine: EngineUnderTest, body: bytes) -> None:
    response = engine.client.post("/v1/chat/completions", content=body, headers=JSON)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_token_outside_the_vocabulary_is_refused(engine: EngineUnderTest) -> None:
    assert complete(engine, prompt=[5000]).json()["error"]["param"] == "prompt"
    assert engine.client.post("/detokenize", json={"tokens": [5000]}).status_code == 400


def test_an_oversized_body_is_refused(engine: EngineUnderTest) -> None:
    assert engine.client.post("/v1/chat/completions", content=b"x" * (33 * 2**20), headers=JSON).status_code == 413


def test_what_a_browser_sends_across_origins_is_refused(engine: EngineUnderTest) -> None:
    body = json.dumps(HELLO).encode()
    response = engine.client.post("/v1/chat/completions", content=body, headers={"content-type": "text/plain"})
    assert response.status_code == 415


def test_paths_and_methods(engine: EngineUnderTest) -> None:
    assert engine.client.get("/nowhere").status_code == 404
    assert engine.client.get("/v1/completions").status_code == 405


async def test_a_full_waiting_list_answers_503_with_retry_after(engine: EngineUnderTest) -> None:
    async with engine.async_client() as client:
        body = {"prompt": "x", "max_tokens": 400, "ignore_eos": True}
        responses = await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(40)))
    refused = [r for r in responses if r.status_code == 503]
    assert len(refused) >= 40 - 12 - 12  # 4 slots and 8 places; some may have ended before the last ones came
    assert {r.headers["retry-after"] for r in refused} == {"1"}
    assert {r.json()["error"]["code"] for r in refused} == {"overloaded"}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
async def test_a_client_that_leaves_stops_the_computing(engine: EngineUnderTest, stream: bool) -> None:
    cancelled = engine.metric("upshift_engine_cancelled_total")
    body = {"prompt": "x", "max_tokens": 2000, "ignore_eos": True, "stream": stream}
    async with engine.async_client() as client:
        request = asyncio.create_task(client.post("/v1/completions", json=body))
        await asyncio.to_thread(wait_for, lambda: engine.metric("upshift_engine_running") == 1, 10)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    took = wait_for(lambda: engine.metric("upshift_engine_cancelled_total") == cancelled + 1, seconds=10)
    assert took < 1
    steps = engine.metric("upshift_engine_steps_total")
    assert engine.metric("upshift_engine_running") == 0
    assert engine.metric("upshift_engine_steps_total") == steps


async def test_a_client_that_leaves_while_waiting_costs_nothing(engine: EngineUnderTest) -> None:
    body = {"prompt": "x", "max_tokens": 1500, "ignore_eos": True}
    async with engine.async_client() as client:
        busy = [asyncio.create_task(client.post("/v1/completions", json=body)) for _ in range(4)]
        await asyncio.to_thread(wait_for, lambda: engine.metric("upshift_engine_running") == 4, 10)
        waiting = asyncio.create_task(client.post("/v1/completions", json=body))
        await asyncio.to_thread(wait_for, lambda: engine.metric("upshift_engine_waiting") == 1, 10)
        prompt_tokens = engine.metric("upshift_engine_prompt_tokens_total")
        waiting.cancel()
        took = await asyncio.to_thread(wait_for, lambda: engine.metric("upshift_engine_waiting") == 0, 10)
        assert took < 1
        for task in busy:
            task.cancel()
        await asyncio.gather(waiting, *busy, return_exceptions=True)
    wait_for(lambda: engine.metric("upshift_engine_running") == 0, seconds=10)
    assert engine.metric("upshift_engine_prompt_tokens_total") == prompt_tokens


def test_the_cache_holds_what_the_scheduler_believes(engine: EngineUnderTest) -> None:
    for n in range(6):
        chat(engine, n=3, messages=[{"role": "user", "content": f"{'shared ' * 20} {n}"}], temperature=1)
    wait_for(lambda: engine.metric("upshift_engine_running") == 0, seconds=10)
    assert engine.metric("upshift_engine_kv_mismatches") == 0
    assert engine.metric("upshift_engine_kv_reserved_tokens") == 0


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_an_answer_keeps_to_its_schema_whatever_the_model_would_write(
    engine: EngineUnderTest, temperature: float
) -> None:
    """The model has random weights: it would write noise."""
    wanted = {
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "grün"]},
            "lamps": {"type": "array", "items": {"$ref": "#/$defs/lamp"}, "minItems": 1, "maxItems": 2},
        },
        "required": ["colour", "lamps"],
        "$defs": {"lamp": LAMP},
    }
    response = chat(engine, response_format=schema(wanted), temperature=temperature, seed=3, max_tokens=400, n=2)
    for choice in response.json()["choices"]:
        answer = json.loads(choice["message"]["content"])
        assert choice["finish_reason"] == "stop"
        assert answer["colour"] in {"red", "grün"}
        assert 1 <= len(answer["lamps"]) <= 2
        assert all(lamp.keys() <= {"watts", "on"} and isinstance(lamp["on"], bool) for lamp in answer["lamps"])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "set_lamp"}}])
def test_a_call_that_is_required_is_one_of_the_tools(engine: EngineUnderTest, choice: object) -> None:
    other = {"type": "function", "function": {"name": "ring", "parameters": {"type": "object", "properties": {}}}}
    fields = {"tools": [other, TOOL], "tool_choice": choice, "parallel_tool_calls": False, "max_tokens": 200}
    for streamed in (False, True):
        response = chat(engine, **fields, temperature=1.2, seed=4, stream=streamed)
        if streamed:
            *_, last = (event["choices"][0] for event in events(response) if event["choices"])
            first, *rest = [c for e in events(response) for c in e["choices"][0]["delta"].get("tool_calls", ())]
            assert all(piece["index"] == 0 and "id" not in piece for piece in rest)
            arguments = "".join(piece["function"]["arguments"] for piece in (first, *rest))
            call = {**first, "function": {**first["function"], "arguments": arguments}}
        else:
            last = response.json()["choices"][0]
            (call,) = last["message"]["tool_calls"]
        assert last["finish_reason"] == "tool_calls"
        assert call["function"]["name"] in ({"set_lamp"} if isinstance(choice, dict) else {"set_lamp", "ring"})
        assert json.loads(call["function"]["arguments"]).keys() <= {"watts", "on"}


def test_tools_alone_change_nothing_until_a_call_is_opened(engine: EngineUnderTest) -> None:
    plain = chat(engine, tools=[TOOL], tool_choice="auto").json()["choices"][0]
    assert plain["message"]["content"]
    assert plain["finish_reason"] == "length"
