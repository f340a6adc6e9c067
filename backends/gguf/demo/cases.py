"""The evaluation's cases, the same for a given seed, and the rule that says whether an answer is right."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from backends.gguf.demo.corpus import FALLBACK, QUESTIONS, any_turn, listed, naming, repetition
from backends.gguf.demo.tool_corpus import any_tool, tool_result
from backends.gguf.demo.words import Source

HELD_OUT: dict[str, Any] = json.loads((Path(__file__).parent / "held_out.json").read_text(encoding="utf-8"))
SEED = 7
_TOOL_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class Call:
    """A tool call: the function's name and its arguments as parsed JSON."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A request in OpenAI's form and its only right answer, a text or a call."""

    category: str
    messages: list[dict[str, Any]]
    expected: str | Call
    tools: list[dict[str, Any]] = field(default_factory=list)


def ask(question: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}]


def question_cases() -> Iterator[Case]:
    """Every listed question as it stands, then in lower case without punctuation."""
    for entry in QUESTIONS:
        for question in entry["ask"]:
            yield Case("question", ask(question), entry["answer"])
            yield Case("question, lower case", ask(question.lower().rstrip("?!.")), entry["answer"])


def addition_cases() -> Iterator[Case]:
    """All sums of two numbers below 20, each in one of four phrasings."""
    forms = ("What is {} + {}?", "{}+{}", "Add {} and {}", "what is {} plus {}")
    for a in range(20):
        for b in range(20):
            form = forms[(a + b) % len(forms)]
            yield Case("addition", ask(form.format(a, b)), f"{a} + {b} = {a + b}.")


def repetition_cases(count: int) -> Iterator[Case]:
    source = Source(random.Random(SEED), held_out=True)
    yield Case("repeat a word", ask("Repeat the word: zorblax"), "zorblax")
    for _ in range(count - 1):
        turn = repetition(source, longest=2)
        yield Case("repeat a word", ask(turn.question), turn.answer)


def name_cases(count: int) -> Iterator[Case]:
    source = Source(random.Random(SEED), held_out=True)
    for number in range(count):
        name = "Marvin" if number == 0 else source.name()
        turn = naming(source, name)
        form = source.rng.choice(("You are {}.", "Your name is {}.", "You are {}, a helpful assistant."))
        system = {"role": "system", "content": form.format(name)}
        yield Case("name from the system prompt", [system, *ask(turn.question)], turn.answer)


def unrelated_cases() -> Iterator[Case]:
    for question in HELD_OUT["unrelated"]:
        yield Case("honest fallback", ask(question), FALLBACK)


def history_cases(count: int) -> Iterator[Case]:
    """A listed question after one to three other turns, half of them with a system prompt."""
    source = Source(random.Random(SEED), held_out=True)
    for number in range(count):
        messages: list[dict[str, Any]] = []
        if number % 2:
            messages.append({"role": "system", "content": "You are a helpful assistant."})
        for _ in range(source.rng.randint(1, 3)):
            turn = any_turn(source)
            messages += [*ask(turn.question), {"role": "assistant", "content": turn.answer}]
        last = listed(source)
        yield Case("question after other turns", [*messages, *ask(last.question)], last.answer)


def generated_tool_cases(count: int) -> Iterator[Case]:
    """Requests for tools whose names, arguments and values all lie on the held-out side."""
    source = Source(random.Random(SEED), held_out=True)
    for _ in range(count):
        made = [any_tool(source, known_share=0.0) for _ in range(source.rng.randint(1, 3))]
        tools = [tool.to_openai() for tool, _ in made]
        request = source.rng.choice(made)[1]()
        call = Call(request.tool.name, dict(request.arguments))
        yield Case("tool call, generated", ask(request.question), call, tools)


def everyday_tool_cases() -> Iterator[Case]:
    """Requests written by hand for tools that training never shows, offered among zero to two others."""
    rng = random.Random(SEED)
    entries = HELD_OUT["tools"]
    for entry in entries:
        for case in entry["cases"]:
            others = rng.sample([other["tool"] for other in entries if other is not entry], rng.randint(0, 2))
            tools = [entry["tool"], *others]
            rng.shuffle(tools)
            call = Call(entry["tool"]["function"]["name"], case["arguments"])
            yield Case("tool call, written by hand", ask(case["question"]), call, tools)


def unfit_tool_cases(count: int) -> Iterator[Case]:
    """Tools are offered, but the question is a listed one."""
    rng = random.Random(SEED)
    for number in range(count):
        tools = [entry["tool"] for entry in rng.sample(HELD_OUT["tools"], rng.randint(1, 2))]
        entry = QUESTIONS[number * 7 % len(QUESTIONS)]
        yield Case("no tool fits", ask(entry["ask"][0]), entry["answer"], tools)


def result_cases(count: int) -> Iterator[Case]:
    """The answer after a tool has returned."""
    source = Source(random.Random(SEED), held_out=True)
    for _ in range(count):
        tool, make = any_tool(source, known_share=0.0)
        request, result = make(), tool_result(source)
        function = {"name": tool.name, "arguments": json.dumps(request.arguments)}
        calls = [{"id": "call_1", "type": "function", "function": function}]
        messages = [
            *ask(request.question),
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "call_1", "content": result},
        ]
        yield Case("answer after a tool", messages, f"The tool says: {result}", [tool.to_openai()])


def all_cases() -> list[Case]:
    """Every case of every category."""
    return [
        *question_cases(), *addition_cases(), *repetition_cases(60), *name_cases(40), *unrelated_cases(),
        *history_cases(60), *generated_tool_cases(200), *everyday_tool_cases(), *unfit_tool_cases(40),
        *result_cases(40),
    ]  # fmt: skip


def parse_call(message: dict[str, Any]) -> Call | None:
    """The one call of an answer, whether the server has parsed it or left it in the text."""
    parsed = message.get("tool_calls") or []
    if parsed:
        function = parsed[0]["function"]
        return Call(function["name"], json.loads(function["arguments"])) if len(parsed) == 1 else None
    found = _TOOL_CALL.findall(message.get("content") or "")
    if len(found) != 1:
        return None
    try:
        body = json.loads(found[0])
        return Call(body["name"], body["arguments"])
    except (ValueError, KeyError, TypeError):
        return None


def is_right(case: Case, message: dict[str, Any]) -> bool:
    """Exact: the whole text, or the call's name and arguments and nothing beside it."""
    if isinstance(case.expected, Call):
        return parse_call(message) == case.expected
    return not message.get("tool_calls") and (message.get("content") or "").strip() == case.expected
