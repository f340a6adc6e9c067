"""The generated conversations: the same for a seed, right by construction, and as the chat template writes them."""

from __future__ import annotations

import json
import random
import re
from functools import cache
from typing import Any

import pytest
from jinja2 import Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

from backends.gguf.demo.chat import Conversation, Parameter, Tool
from backends.gguf.demo.corpus import QUESTIONS, addition, chat, conversation, tool_chat, unknown
from backends.gguf.demo.export import read_demo
from backends.gguf.demo.tool_corpus import any_tool
from backends.gguf.demo.words import Source, is_held_out


def text_of(made: Conversation) -> str:
    return "".join(text for text, _ in made.parts())


@cache
def template(*, trim: bool) -> Template:
    environment = ImmutableSandboxedEnvironment(trim_blocks=trim, lstrip_blocks=trim)
    environment.filters["tojson"] = json.dumps
    return environment.from_string(read_demo().metadata["tokenizer.chat_template"])


def rendered(messages: list[dict[str, Any]], tools: list[Any], *, trim: bool = True, ask: bool = True) -> str:
    return template(trim=trim).render(messages=messages, tools=tools, add_generation_prompt=ask)


def test_same_seed_gives_the_same_conversations() -> None:
    first, second = (Source(random.Random(5)) for _ in range(2))
    assert [conversation(first, 0.5) for _ in range(200)] == [conversation(second, 0.5) for _ in range(200)]


def test_every_conversation_teaches_an_answer() -> None:
    source = Source(random.Random(1))
    for _ in range(300):
        made = conversation(source, source.rng.random())
        assert any(learn and text for text, learn in made.parts())
        assert made.messages[-1].role == "assistant"


def test_listed_questions_have_one_answer_each() -> None:
    answers: dict[str, str] = {}
    for entry in QUESTIONS:
        for question in entry["ask"]:
            key = re.sub(r"[^a-z0-9]", "", question.lower())
            assert answers.setdefault(key, entry["answer"]) == entry["answer"], question


def test_there_are_enough_listed_questions() -> None:
    assert len(QUESTIONS) >= 150
    assert all(len(entry["answer"].split()) <= 30 for entry in QUESTIONS)


def bare(question: str) -> str:
    return re.sub(r"\W", "", question.lower())


def test_unknown_questions_are_never_listed_ones() -> None:
    source = Source(random.Random(2))
    known = {bare(ask) for entry in QUESTIONS for ask in entry["ask"]}
    # "Hey, " before a lone question mark is a greeting again: three in ten thousand, too few to matter.
    assert not {bare(unknown(source).question) for _ in range(3000)} & (known - {"hey", "hi"})


def test_sums_are_right() -> None:
    source = Source(random.Random(3))
    for _ in range(500):
        match = re.fullmatch(r"(\d+) \+ (\d+) = (\d+)\.", addition(source).answer)
        assert match is not None
        a, b, total = map(int, match.groups())
        assert a + b == total
        assert max(a, b) < 20


def test_both_sides_of_the_split_share_no_tool_argument_or_value() -> None:
    for held_out in (False, True):
        source = Source(random.Random(4), held_out)
        for _ in range(300):
            tool, make = any_tool(source, known_share=0.0)
            request = make()
            for text in (tool.name, *request.arguments, *map(str, request.arguments.values())):
                shared = [option for p in tool.parameters for option in p.options]
                assert is_held_out(text) == held_out or (text in shared and not held_out)


def test_arguments_of_a_call_stand_in_the_question() -> None:
    source = Source(random.Random(6))
    for _ in range(500):
        request = any_tool(source)[1]()
        for value in request.arguments.values():
            assert str(value).lower() in request.question.lower()


@pytest.mark.parametrize("trim", [True, False])
@pytest.mark.parametrize("make", [chat, tool_chat])
def test_template_writes_what_training_saw(make: Any, trim: bool) -> None:
    source = Source(random.Random(8))
    for _ in range(100):
        made = make(source)
        if made.messages[-1].cut:
            continue
        messages: list[dict[str, Any]] = [{"role": "system", "content": made.system}] if made.system else []
        messages += [as_openai(message.role, message.content) for message in made.messages]
        tools = [tool.to_openai() for tool in made.tools]
        assert rendered(messages, tools, trim=trim, ask=False) == text_of(made)


def as_openai(role: str, content: str) -> dict[str, Any]:
    """The message as a client sends it: calls parsed, tool results bare."""
    call = re.fullmatch(r"<tool_call>\n(.*)\n</tool_call>", content, re.DOTALL)
    if call:
        return {"role": role, "content": None, "tool_calls": [{"type": "function", "function": json.loads(call[1])}]}
    return {"role": role, "content": re.sub(r"^<tool_response>\n|\n</tool_response>$", "", content)}


def test_template_takes_arguments_as_text_too() -> None:
    function = {"name": "find", "arguments": '{"x": 1}'}
    messages = [{"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}]
    assert '{"name": "find", "arguments": {"x": 1}}' in rendered(messages, [])


def test_template_takes_a_tool_without_description_or_parameters() -> None:
    text = rendered([{"role": "user", "content": "Hi"}], [{"type": "function", "function": {"name": "ping"}}])
    assert text.startswith('<|im_start|>system\nTools:\n{"name": "ping", "arguments": {}}<|im_end|>\n')
    assert text.endswith("<|im_start|>assistant\n")


def test_signature_marks_options_and_optional_arguments() -> None:
    parameters = (Parameter("a"), Parameter("b", "integer", False), Parameter("c", options=("x", "y")))
    tool = Tool("find", "Find it.", parameters)
    assert tool.signature() == 'Find it. {"name": "find", "arguments": {"a": string, "b": integer?, "c": x|y}}'
