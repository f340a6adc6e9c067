"""What our GGUF engine and vLLM do alike beyond the contract (test_contract.py), on the same model: sampling, tools,
prefixes, refusals, limits. Calls go past the gateway, to the engine's own socket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from backends.base import BackendResponse, BackendState, InferenceRequest, Operation
from backends.errors import BackendError, BackendOverloaded, ContextLengthExceeded, InvalidRequest
from backends.http import HttpClient
from backends.openai import OpenAIBackend
from backends.probe import total
from tests.engine import running_engine, wait_for
from tests.fakes import body_of
from tests.vllm import MAX_QUEUED, VllmUnderTest

QUESTION = [{"role": "user", "content": "What is continuous batching?"}]
LONG = {"prompt": "a", "max_tokens": 900, "ignore_eos": True, "temperature": 0}
LIMIT_SECONDS = 300


@dataclass(frozen=True)
class Endpoint:
    """A running engine: where it is, the gauge of its running requests, and how many it takes before it refuses."""

    address: str
    running: str
    most: int

    def load(self) -> float:
        """Requests that it computes now."""
        path = self.address.removeprefix("unix:")
        with httpx.Client(transport=httpx.HTTPTransport(uds=path), timeout=60) as client:
            return total(client.get("http://engine/metrics").content, self.running)


@pytest.fixture(scope="session")
def gguf_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("gguf")
    options = ("--name", "demo", "--parallel", "4", "--max-waiting", "8", "--context-tokens", "1024")
    with running_engine("demo", folder, *options) as engine:
        yield Endpoint(f"unix:{engine.socket}", "upshift_engine_running", 12)


@pytest.fixture
def endpoint(request: pytest.FixtureRequest) -> Endpoint:
    if request.param == "gguf":
        found: Endpoint = request.getfixturevalue("gguf_endpoint")
        return found
    vllm: VllmUnderTest = request.getfixturevalue("vllm")
    vllm.wait_ready()
    return Endpoint(f"unix:{vllm.socket}", "vllm:num_requests_running", MAX_QUEUED)


pytestmark = pytest.mark.parametrize("endpoint", ["gguf", pytest.param("vllm", marks=pytest.mark.vllm)], indirect=True)


@pytest.fixture
async def backend(endpoint: Endpoint) -> AsyncIterator[OpenAIBackend]:
    client = HttpClient(endpoint.address)
    async with asyncio.timeout(LIMIT_SECONDS):
        yield OpenAIBackend("engine", client, state=lambda: BackendState.READY)
    await client.aclose()


def chat(**fields: Any) -> InferenceRequest:
    return _request(Operation.CHAT, {"messages": QUESTION, "temperature": 0, **fields})


def completion(**fields: Any) -> InferenceRequest:
    return _request(Operation.COMPLETION, {"prompt": "Continuous batching", "temperature": 0, **fields})


def _request(operation: Operation, fields: dict[str, Any]) -> InferenceRequest:
    body = json.dumps({"model": "demo", **fields}).encode()
    return InferenceRequest(operation, "demo", body, bool(fields.get("stream")), "request-1")


async def answer(backend: OpenAIBackend, request: InferenceRequest) -> Any:
    response = await backend.send(request)
    try:
        assert (response.status, response.content_type.partition(b";")[0]) == (200, b"application/json")
        return json.loads(await body_of(response))
    finally:
        response.close()


async def reaches(condition: Callable[[], bool]) -> None:
    """Another process is seen only by looking."""
    await asyncio.to_thread(wait_for, condition, LIMIT_SECONDS)


async def test_length_stop_and_n_are_kept(backend: OpenAIBackend) -> None:
    cut = await answer(backend, completion(max_tokens=7, ignore_eos=True))
    assert (cut["choices"][0]["finish_reason"], cut["usage"]["completion_tokens"]) == ("length", 7)
    stopped = await answer(backend, chat(stop=["batch"]))
    assert "batch" not in stopped["choices"][0]["message"]["content"]
    assert stopped["choices"][0]["finish_reason"] == "stop"
    several = await answer(backend, chat(n=3, temperature=1, seed=1, max_tokens=20))
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2]


async def test_a_seed_is_a_text_and_another_seed_another(backend: OpenAIBackend) -> None:
    options = {"temperature": 1.5, "max_tokens": 40, "ignore_eos": True}
    texts = [(await answer(backend, completion(seed=seed, **options)))["choices"][0]["text"] for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


async def test_logprobs_are_those_of_the_chosen_tokens(backend: OpenAIBackend) -> None:
    found = await answer(backend, chat(logprobs=True, top_logprobs=2, max_tokens=5))
    entries = found["choices"][0]["logprobs"]["content"]
    assert len(entries) == 5
    for entry in entries:
        assert entry["logprob"] == max(top["logprob"] for top in entry["top_logprobs"])
        assert entry["logprob"] <= 0


async def test_tools_are_called_with_their_arguments(backend: OpenAIBackend) -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
    function = {"name": "get_weather", "description": "Get the current weather of a city", "parameters": parameters}
    question = [{"role": "user", "content": "What is the weather in Paris?"}]
    found = await answer(backend, chat(messages=question, tools=[{"type": "function", "function": function}]))
    (choice,) = found["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("get_weather", {"city": "Paris"})
    assert choice["finish_reason"] == "tool_calls"


async def test_prompts_that_begin_alike_are_computed_once(backend: OpenAIBackend) -> None:
    prompt = "one two three four five six seven eight nine ten " * 12
    first = await answer(backend, completion(prompt=prompt, max_tokens=1))
    again = await answer(backend, completion(prompt=prompt + "eleven", max_tokens=1))
    assert first["usage"]["prompt_tokens"] > 200
    assert again["usage"]["prompt_tokens_details"]["cached_tokens"] >= 128


async def test_answers_side_by_side_are_those_alone(backend: OpenAIBackend) -> None:
    questions = ["What is TTFT?", "What is a KV cache?", "What is continuous batching?", "What is Upshift?"]
    requests = [chat(messages=[{"role": "user", "content": question}]) for question in questions]
    together = await asyncio.gather(*(answer(backend, request) for request in requests))
    alone = [await answer(backend, request) for request in requests]
    for one, other in zip(together, alone, strict=True):
        assert one["choices"][0]["message"] == other["choices"][0]["message"]


@pytest.mark.parametrize(
    ("fields", "kind", "said"),
    [
        pytest.param({"temperature": "hot"}, InvalidRequest, "temperature", id="wrong-type"),
        pytest.param({"max_tokens": -1}, InvalidRequest, "max_tokens", id="out-of-range"),
        pytest.param({"model": "nobody"}, InvalidRequest, "nobody", id="unknown-model"),
        pytest.param({"max_tokens": 100_000}, ContextLengthExceeded, "1024", id="answer-too-long"),
        pytest.param(
            {"messages": [{"role": "user", "content": "word " * 5000}]}, ContextLengthExceeded, "1024", id="too-long"
        ),
    ],
)
async def test_refusal_names_what_is_wrong(
    backend: OpenAIBackend, fields: dict[str, Any], kind: type[BackendError], said: str
) -> None:
    with pytest.raises(kind) as caught:
        await answer(backend, chat(**fields))
    assert type(caught.value) is kind
    assert said in caught.value.message
    assert "batch" in (await answer(backend, chat()))["choices"][0]["message"]["content"]


async def test_more_than_it_takes_is_refused_for_now(backend: OpenAIBackend, endpoint: Endpoint) -> None:
    calls = [asyncio.create_task(backend.send(completion(**LONG))) for _ in range(2 * endpoint.most)]
    try:
        while not (refused := [call for call in calls if call.done() and call.exception()]):
            await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert {type(call.exception()) for call in refused} == {BackendOverloaded}
    finally:
        for call in calls:
            call.cancel()
        answered = await asyncio.gather(*calls, return_exceptions=True)
        for response in answered:
            if isinstance(response, BackendResponse):
                response.close()
    await reaches(lambda: endpoint.load() == 0)
