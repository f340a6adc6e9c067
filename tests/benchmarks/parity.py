"""Do our GGUF engine and vLLM say the same? Asks both all questions that the demo model knows, greedily, and looks at
every difference token by token.

    python -m tests.benchmarks.parity            starts both engines (a minute or more), asks 408 questions
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import httpx

from backends.gguf import demo
from tests.e2e.gateway import running_gateway
from tests.vllm import BOTH, VllmUnderTest, ensure_installed

_AT_ONCE = 8
_QUESTIONS: list[dict[str, Any]] = json.loads((Path(demo.__file__).parent / "questions.json").read_text("utf-8"))


class Token(NamedTuple):
    """A token that was chosen: its text, its log-probability, and the one that came second with its own."""

    text: str
    logprob: float
    second: str
    second_logprob: float


@dataclass(frozen=True, slots=True)
class Difference:
    """Where two answers part: after `same` tokens each engine prefers another one."""

    question: str
    same: int
    gguf: Token | None
    vllm: Token | None

    @property
    def gap(self) -> float:
        """By how much the surer of the two engines preferred its own token, in nats."""
        return max(token.logprob - token.second_logprob for token in (self.gguf, self.vllm) if token is not None)

    def __str__(self) -> str:
        return (
            f"{self.question!r} parts after {self.same} tokens: GGUF {self.gguf}, vLLM {self.vllm}, gap {self.gap:.4f}"
        )


@dataclass(frozen=True, slots=True)
class Compared:
    """What came of `asked` questions; `largest_drift` is the largest difference of a log-probability while both had
    chosen the same tokens."""

    asked: int
    differences: tuple[Difference, ...]
    largest_drift: float

    @property
    def rate(self) -> float:
        """The share of questions that both answer with the same tokens."""
        return 1 - len(self.differences) / self.asked


def one_of_each() -> list[str]:
    """The first phrasing of every question."""
    return [str(entry["ask"][0]) for entry in _QUESTIONS]


def all_phrasings() -> list[str]:
    """Every phrasing of every question."""
    return [str(question) for entry in _QUESTIONS for question in entry["ask"]]


async def agreement(gguf_socket: Path, vllm_socket: Path, questions: Sequence[str]) -> Compared:
    """Asks both engines, each on its own socket."""
    limit = asyncio.Semaphore(_AT_ONCE)
    # vLLM closes a connection that was idle for 5 s, as one is while the other engine answers on a busy machine.
    once = httpx.Limits(max_keepalive_connections=0)
    transports = [httpx.AsyncHTTPTransport(uds=str(socket), limits=once) for socket in (gguf_socket, vllm_socket)]
    async with (
        httpx.AsyncClient(transport=transports[0], base_url="http://gguf", timeout=300) as gguf,
        httpx.AsyncClient(transport=transports[1], base_url="http://vllm", timeout=300) as vllm,
    ):

        async def both(question: str) -> tuple[list[Token], list[Token]]:
            async with limit:
                return await _tokens(gguf, question), await _tokens(vllm, question)

        async with asyncio.TaskGroup() as group:
            asking = [group.create_task(both(question)) for question in questions]
        answers = [task.result() for task in asking]
    parted = [_difference(question, *pair) for question, pair in zip(questions, answers, strict=True)]
    drift = max((_drift(*pair) for pair in answers), default=0.0)
    return Compared(len(questions), tuple(each for each in parted if each is not None), drift)


async def _tokens(client: httpx.AsyncClient, question: str) -> list[Token]:
    body = {"model": "demo", "temperature": 0, "logprobs": True, "top_logprobs": 2, "max_tokens": 200}
    answer = await client.post(
        "/v1/chat/completions", json={**body, "messages": [{"role": "user", "content": question}]}
    )
    answer.raise_for_status()
    (choice,) = answer.json()["choices"]
    found = []
    for entry in choice["logprobs"]["content"]:
        others = [top for top in entry["top_logprobs"] if top["token"] != entry["token"]]
        second: dict[str, Any] = others[0] if others else {"token": "", "logprob": float("-inf")}
        found.append(Token(entry["token"], entry["logprob"], second["token"], second["logprob"]))
    if choice["finish_reason"] == "stop":
        # The token that ends an answer has no text; vLLM shows its name, our engine shows nothing.
        found[-1] = found[-1]._replace(text="")
    return found


def _difference(question: str, gguf: list[Token], vllm: list[Token]) -> Difference | None:
    texts = [token.text for token in gguf], [token.text for token in vllm]
    if texts[0] == texts[1]:
        return None
    same = next(
        (n for n, (one, other) in enumerate(zip(*texts, strict=False)) if one != other), min(len(gguf), len(vllm))
    )
    return Difference(question, same, *(tokens[same] if same < len(tokens) else None for tokens in (gguf, vllm)))


def _drift(gguf: list[Token], vllm: list[Token]) -> float:
    largest = 0.0
    for one, other in zip(gguf, vllm, strict=False):
        if one.text != other.text:
            break
        largest = max(largest, abs(one.logprob - other.logprob))
    return largest


def main() -> None:
    ensure_installed()
    with tempfile.TemporaryDirectory() as folder, running_gateway(Path(folder), BOTH) as gateway:
        print("starting both engines: a minute or more", file=sys.stderr)
        vllm = VllmUnderTest(gateway)
        vllm.wait_ready()
        compared = asyncio.run(agreement(gateway.engine_socket(), vllm.socket, all_phrasings()))
    for difference in compared.differences:
        print(difference)
    same = compared.asked - len(compared.differences)
    print(f"{same} of {compared.asked} answers are the same ({compared.rate:.1%})")
    print(f"largest difference of a log-probability before that: {compared.largest_drift:.4f}")


if __name__ == "__main__":
    main()
