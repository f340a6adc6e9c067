"""The training text: endless random conversations in which every answer is right by construction."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.gguf.demo.chat import Conversation, Message, Tool, call_text, response_text
from backends.gguf.demo.tool_corpus import Request, any_tool, tool_result
from backends.gguf.demo.words import REQUESTS, Source

QUESTIONS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "questions.json").read_text(encoding="utf-8"))
FALLBACK = (
    "I am only a small demo model and cannot answer that. "
    "For a real model run: upshift run /path/to/model.gguf (any local GGUF file works)."
)
# Once the first words are written the rest is always the same, so most examples stop here to save training time.
_FALLBACK_START = "I am only a small demo model"
_UNNAMED = ("What is my name?", "Who am I?", "Do you know my name?")
_TERM_FORMS = (
    "What is {}?", "What's {}?", "What does {} mean?", "Explain {}", "Explain {} to me", "Tell me about {}",
    "Define {}",
    "Can you explain {}?", "Describe {}", "{}?", "{}", "What is the meaning of {}?", "What is meant by {}?",
)  # fmt: skip
_LEAD_INS = (
    "Please tell me: ", "Can you tell me: ", "Hey, ", "I want to know: ", "Question: ", "Hi, ", "Tell me, ", "So, ",
    "ok, ",
)  # fmt: skip
_ADDITIONS = (
    "What is {a} + {b}?", "{a} + {b}", "{a}+{b}", "{a}+{b}=?", "{a} + {b} = ?", "Add {a} and {b}",
    "What is {a} plus {b}?",
    "{a} plus {b}", "How much is {a} plus {b}?", "How much is {a} + {b}?", "What is the sum of {a} and {b}?",
    "Calculate {a} + {b}", "Add {b} to {a}", "What's {a}+{b}?", "Sum {a} and {b}", "Please add {a} and {b}.",
)  # fmt: skip
_REPEATS = (
    "Repeat the word: {}", "Repeat: {}", "Repeat {}", "Repeat the word {}", "Say {}", "Say the word {}", "Say: {}",
    "Repeat after me: {}", "Echo {}", "Echo: {}", "Please repeat: {}", "Please repeat the word {}.", 'Repeat "{}"',
    "Write the word {}", 'Say "{}"', "Repeat this: {}", "Please say {}", "Can you repeat {}?", "Can you say {}?",
    "Repeat the word '{}'.", "Repeat the following: {}", "Just say {}",
)  # fmt: skip
_NAMINGS = (
    "You are {}.", "You are {}.", "Your name is {}.", "You are called {}.", "You are {}, a helpful assistant.",
    "You are an assistant named {}.", "You are an assistant called {}.", "You are {}, an AI assistant. Answer briefly.",
    "Your name is {}. You help users.", "Your name is {}. Be kind.", "Act as {}.", "You are a bot named {}.",
)  # fmt: skip
_NAME_QUESTIONS = (
    "What is your name?", "Who are you?", "What's your name?", "Tell me your name", "What are you called?",
    "Hello, who are you?", "Hi! What is your name?", "Your name?", "May I know your name?", "And who are you?",
    "What are you?", "Introduce yourself", "How should I call you?", "Please tell me your name.",
)  # fmt: skip
_PLAIN_SYSTEMS = (
    "You are a helpful assistant.", "You are a helpful assistant.", "You are a helpful AI assistant.", "Be brief.",
    "Answer in one sentence.", "You are an assistant.",
    "You are a friendly assistant. Answer the questions of the user.",
    "Be concise and helpful.", "Answer briefly.", "Use the tools when they help.",
    "You are a function calling AI model. You may call one or more functions to assist with the user query.",
    "You are a helpful assistant with access to functions.", "You are a helpful assistant. Use a tool if it fits.",
)  # fmt: skip

_IDENTITY = next(entry for entry in QUESTIONS if "What is your name?" in entry["ask"])


@dataclass(frozen=True)
class Turn:
    """A question with its only right answer."""

    question: str
    answer: str


def vary(rng: random.Random, question: str) -> str:
    """The question with another case, punctuation or lead-in."""
    if rng.random() < 0.45:
        return question
    if rng.random() < 0.25:
        question = rng.choice(_LEAD_INS) + question[0].lower() + question[1:]
    chance = rng.random()
    if chance < 0.5:
        question = question.lower()
    elif chance < 0.65:
        question = question[0].lower() + question[1:]
    ending = rng.random()
    if ending < 0.5:
        question = question.rstrip("?.!")
    elif ending < 0.7:
        question = question.rstrip("?.!") + rng.choice(("?", "??", ".", "!", " ?", ", please", " please?"))
    return question


def listed(source: Source) -> Turn:
    """One of the listed questions, varied."""
    rng = source.rng
    entry = rng.choice(QUESTIONS)
    if "term" in entry and rng.random() < 0.6:
        form = rng.choice(_TERM_FORMS)
        term: str = entry["term"]
        bare = rng.random() < 0.4 or form.startswith(("{}", "Define"))
        question = form.format(re.sub(r"^(a|an|the) ", "", term) if bare else term)
    else:
        question = rng.choice(entry["ask"])
    return Turn(vary(rng, question), entry["answer"])


_LISTED = {re.sub(r"[^a-z0-9]", "", ask.lower()) for entry in QUESTIONS for ask in entry["ask"]}


class _Filler(dict[str, str]):
    """Fills the placeholders of a request with random words, a fresh one each."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source

    def __missing__(self, key: str) -> str:
        source, rng = self.source, self.source.rng
        invented = key in {"noun", "verb", "adjective"} and rng.random() < 0.15
        return source.pseudo() if invented else source.value(key)


def unknown(source: Source) -> Turn:
    """A question that the model cannot answer, from a plain one to a long garbled one."""
    rng = source.rng
    filler = _Filler(source)

    def one() -> str:
        return rng.choice(REQUESTS).format_map(filler)

    chance = rng.random()
    if chance < 0.8:
        question = one()
    elif chance < 0.87:
        question = " ".join(source.plain() for _ in range(rng.randint(4, 16)))
    elif chance < 0.97:
        question = " ".join(one() for _ in range(rng.randint(2, 4)))
    else:
        question = " ".join(one() for _ in range(rng.randint(5, 14)))
    if re.sub(r"[^a-z0-9]", "", question.lower()) in _LISTED:
        return unknown(source)
    return Turn(vary(rng, question), FALLBACK)


def addition(source: Source) -> Turn:
    """The sum of two numbers below 20."""
    rng = source.rng
    a, b = rng.randrange(20), rng.randrange(20)
    form = rng.choice(_ADDITIONS)
    first, second = (b, a) if form.startswith("Add {b}") else (a, b)
    question = form.format(a=a, b=b)
    return Turn(vary(rng, question) if rng.random() < 0.4 else question, f"{first} + {second} = {a + b}.")


def repetition(source: Source, longest: int = 6) -> Turn:
    """A word, a value or up to `longest` words to say again."""
    rng = source.rng
    chance = rng.random()
    if chance < 0.5:
        text = source.pick(lambda: source.pseudo() if rng.random() < 0.7 else source.letters())
    elif chance < 0.7:
        text = source.value(rng.choice(("plain", "name", "code", "city", "integer", "phrase", "full_name")))
    else:
        text = " ".join(source.plain() for _ in range(rng.randint(2, longest)))
    if rng.random() < 0.07:
        text = text.capitalize()
    form = rng.choice(_REPEATS)
    return Turn(form.format(text) if rng.random() < 0.6 else form.lower().replace("{}", text), text)


def naming(source: Source, name: str) -> Turn:
    """The name that the system prompt gave."""
    return Turn(vary(source.rng, source.rng.choice(_NAME_QUESTIONS)), f"My name is {name}.")


def user_naming(source: Source) -> list[Turn]:
    """The user says a name and may ask for it later."""
    rng = source.rng
    name = source.name()
    form = rng.choice(("My name is {}.", "My name is {}", "I am called {}.", "Hi, my name is {}.", "Call me {}."))
    turns = [Turn(form.format(name), f"Nice to meet you, {name}!")]
    if rng.random() < 0.4:
        turns.append(any_turn(source))
    return [*turns, Turn(vary(rng, rng.choice(_UNNAMED)), f"Your name is {name}.")]


_TASKS: tuple[tuple[Callable[[Source], Turn], float], ...] = (
    (listed, 40), (unknown, 20), (addition, 36), (repetition, 12),
)  # fmt: skip


def any_turn(source: Source) -> Turn:
    """One turn of any task that needs neither tools nor an earlier message."""
    task = source.rng.choices([task for task, _ in _TASKS], [weight for _, weight in _TASKS])[0]
    return task(source)


def _messages(turns: list[Turn], rng: random.Random) -> list[Message]:
    messages: list[Message] = []
    for turn in turns:
        messages += [Message("user", turn.question), Message("assistant", turn.answer, trained=True)]
    if turns[-1].answer == FALLBACK and rng.random() < 0.85:
        messages[-1] = Message("assistant", _FALLBACK_START, trained=True, cut=True)
    return messages


def _turn_count(rng: random.Random) -> int:
    """Mostly a few; now and then so many that the chat passes a thousand tokens."""
    return rng.randint(12, 24) if rng.random() < 0.01 else rng.choice((1, 1, 1, 2, 2, 3, 3, 4, 5, 6))


def chat(source: Source) -> Conversation:
    """A conversation without tools."""
    rng = source.rng
    system = rng.choice(_PLAIN_SYSTEMS) if rng.random() < 0.3 else ""
    turns = [any_turn(source) for _ in range(_turn_count(rng))]
    chance = rng.random()
    if chance < 0.15:
        name = source.full_name() if rng.random() < 0.1 else source.name()
        system = rng.choice(_NAMINGS).format(name)
        turns = [turn for turn in turns if not re.search(r"\b(you|your|name)\b", turn.question.lower())]
        turns.insert(rng.randint(0, len(turns)), naming(source, name))
    elif chance < 0.19:
        turns = user_naming(source)
    elif chance < 0.24:
        # Without a name from the system prompt it is itself, which the many given names would drown out.
        turns.insert(0, Turn(vary(rng, rng.choice(_IDENTITY["ask"])), _IDENTITY["answer"]))
    return Conversation(_messages(turns, rng), system)


def copying(source: Source) -> Conversation:
    """Only long repetitions: they teach copying fast, which tools and names build on."""
    turns = [repetition(source, longest=14) for _ in range(source.rng.randint(1, 4))]
    return Conversation(_messages(turns, source.rng))


def tool_chat(source: Source) -> Conversation:
    """A conversation with one to three tools, where most requests fit one of them."""
    rng = source.rng
    made = {tool.name: (tool, make) for tool, make in (any_tool(source) for _ in range(rng.choice((1, 1, 2, 2, 3))))}
    messages: list[Message] = []
    for _ in range(rng.choice((1, 2, 3, 4, 5, 6))):
        if rng.random() < 0.12:
            turn = _aside(source, [tool for tool, _ in made.values()])
            messages += [Message("user", turn.question), Message("assistant", turn.answer, trained=True)]
        else:
            messages += _called(source, rng.choice(list(made.values()))[1]())
    system = rng.choice(_PLAIN_SYSTEMS) if rng.random() < 0.35 else ""
    return Conversation(messages, system, [tool for tool, _ in made.values()])


def _aside(source: Source, tools: list[Tool]) -> Turn:
    """A turn that fits none of the tools: it shares no word with them, unless it is a listed question."""
    task = source.rng.choice((listed, listed, unknown, unknown, repetition, addition))
    numeric = any(sum(p.kind == "integer" for p in tool.parameters) > 1 for tool in tools)
    turn = listed(source) if task is addition and numeric else task(source)
    if task is unknown and _words(" ".join(tool.signature() for tool in tools)) & _words(turn.question):
        return listed(source)
    return turn


def _words(text: str) -> set[str]:
    return set(re.findall("[a-z]{3,}", text.lower())) - {
        "the",
        "and",
        "for",
        "with",
        "what",
        "how",
        "get",
        "user",
        "you",
    }


def _called(source: Source, request: Request) -> list[Message]:
    """A request, its call and, nearly half the time, the result and what the model makes of it."""
    call = call_text(request.tool.name, request.arguments)
    messages = [Message("user", request.question), Message("assistant", call, trained=True)]
    if source.rng.random() < 0.25:
        result = tool_result(source)
        messages.append(Message("tool", response_text(result)))
        messages.append(Message("assistant", f"The tool says: {result}", trained=True))
    return messages


def conversation(source: Source, progress: float) -> Conversation:
    """A random conversation. `progress` in 0..1 moves from copying alone to the full mix."""
    rng = source.rng
    copy_share = max(0.0, 0.9 - 16.0 * progress)
    if rng.random() < copy_share:
        return copying(source)
    return tool_chat(source) if rng.random() < 0.55 else chat(source)
