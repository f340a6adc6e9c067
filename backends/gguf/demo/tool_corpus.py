"""Generated tools, requests that fit them, and the calls that answer those requests."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.gguf.demo.chat import Parameter, Tool, Values
from backends.gguf.demo.words import NOUNS, NUMBER_ARGUMENTS, OPTIONS, TEXT_ARGUMENTS, VERBS, Source

_KNOWN: list[dict[str, Any]] = json.loads((Path(__file__).parent / "tools.json").read_text(encoding="utf-8"))
_VALUE_KINDS = ("word", "word", "word", "pseudo", "name", "city", "city", "phrase", "code", "date")
_DATE_LIKE = {"date": "date", "day": "date", "time": "time", "email": "email", "city": "city", "country": "city"}


@dataclass(frozen=True)
class Request:
    """What the user says and the arguments that the right call has."""

    tool: Tool
    question: str
    arguments: Values


@dataclass(frozen=True)
class _Verb:
    """The words behind a generated tool: its requests are built from them."""

    verb: str
    noun: str


def random_identifier(source: Source, words: list[str]) -> str:
    """Joins words as snake_case or camelCase."""
    if source.rng.random() < 0.8:
        return "_".join(words)
    return words[0] + "".join(word.capitalize() for word in words[1:])


def _noun(source: Source) -> str:
    return source.rng.choice(NOUNS) if source.rng.random() < 0.9 else source.pseudo()


def _argument_name(source: Source, kind: str) -> str:
    rng = source.rng

    def make() -> str:
        # Any word may name an argument in training: the usual ones alone are learned by heart and not copied.
        if not source.held_out and rng.random() < 0.45:
            make_word = source.pseudo if rng.random() < 0.5 else source.plain
            return random_identifier(source, [make_word() for _ in range(rng.choice((1, 1, 1, 2)))])
        if rng.random() < 0.2:
            return random_identifier(source, [_noun(source)] + [rng.choice(("id", "name", "key"))] * rng.randint(0, 1))
        return rng.choice(TEXT_ARGUMENTS if kind == "string" else NUMBER_ARGUMENTS)

    return source.pick(make)


def _parameters(source: Source) -> tuple[Parameter, ...]:
    rng = source.rng
    made: dict[str, Parameter] = {}
    for _ in range(rng.choice((0, 1, 1, 1, 1, 2, 2, 2))):
        kind = rng.choices(("string", "integer", "enum"), (6, 3, 2))[0]
        required = rng.random() < 0.8
        if kind == "enum":
            options = _options(source)
            name = source.pick(lambda: rng.choice(("unit", "mode", "level", "format", "type", "style", source.plain())))
            made[name] = Parameter(name, "string", required, options)
        else:
            name = _argument_name(source, kind)
            made[name] = Parameter(name, kind, required)
    return tuple(made.values())


def _options(source: Source) -> tuple[str, ...]:
    if not source.held_out and source.rng.random() < 0.6:
        return tuple(source.rng.choice(OPTIONS))
    return tuple(dict.fromkeys(source.word() for _ in range(source.rng.randint(2, 3))))


def random_tool(source: Source) -> tuple[Tool, _Verb]:
    """A tool that does a random thing, with the verb and noun that a request for it uses."""
    rng = source.rng
    named: dict[str, tuple[str, list[str]]] = {}

    def make() -> str:
        verb = rng.choice(VERBS) if rng.random() < 0.95 else source.pseudo()
        nouns = [_noun(source) for _ in range(rng.choice((1, 1, 1, 1, 2)))]
        name = random_identifier(source, [verb, *nouns] if rng.random() < 0.85 else [*nouns, verb])
        named[name] = verb, nouns
        return name

    name = source.pick(make)
    verb, nouns = named[name]
    article = rng.choice(("the", "a", ""))
    described = " ".join([verb, article, *nouns]).replace("  ", " ")
    tail = rng.choice(("", "", "", " for the user", f" by {source.noun()}", f" of a {source.noun()}"))
    text = f"{described}{tail}".capitalize() + "."
    if rng.random() < 0.1:
        form = rng.choice(
            ("Use it to {} {}.", "Use this when the user wants to {} {}.", "Returns the {1} to {0}.", "Can {} a {}.")
        )
        text += " " + form.format(source.verb(), source.noun())
    return Tool(name, "" if rng.random() < 0.05 else text, _parameters(source)), _Verb(verb, " ".join(nouns))


def argument_value(source: Source, parameter: Parameter) -> str | int | float:
    """A random value that fits the parameter."""
    if parameter.options:
        return source.rng.choice(parameter.options)
    if parameter.kind == "integer":
        return int(source.integer())
    if parameter.kind == "number":
        return float(source.pick(lambda: f"{source.rng.randint(0, 99)}.{source.rng.randint(1, 99)}".rstrip("0")))
    for ending, kind in _DATE_LIKE.items():
        if parameter.name.endswith(ending) and source.rng.random() < 0.7:
            return source.value(kind)
    return source.pick(lambda: source.value(source.rng.choice(_VALUE_KINDS)))


def _said(rng: random.Random, name: str, value: object) -> str:
    """One argument the way a user may say it."""
    words = name.replace("_", " ")
    forms = (
        f"{words} {value}",
        f"the {words} {value}",
        f"{words} = {value}",
        f"{name} {value}",
        f"{value} as {words}",
        f'{words} "{value}"',
    )
    return rng.choices(forms, (6, 2, 1, 2, 1, 1))[0]


def _single(rng: random.Random, act: str, words: _Verb, value: str | int) -> str:
    """A request with one bare value, which only one argument can take."""
    return rng.choice(
        (
            f"{act} for {value}",
            f"{act} {value}",
            f"{act} of {value}",
            f"{act} in {value}",
            f"{act} with {value}",
            f'{act} "{value}"',
            f"{act}: {value}",
            f"What is the {words.noun} of {value}?",
            f"What is the {words.noun} for {value}?",
            f"{words.verb} {value}",
        )
    )


def random_request(source: Source, tool: Tool, words: _Verb) -> Request:
    """A request for the tool, with values for all required and some optional arguments."""
    rng = source.rng
    given = [p for p in tool.parameters if p.required or rng.random() < 0.5]
    values: Values = {p.name: argument_value(source, p) for p in given}
    act = f"{words.verb} {rng.choice(('the ', 'a ', 'my ', ''))}{words.noun}"
    by_kind = {("enum" if p.options else p.kind): p for p in given}
    if rng.random() < 0.08:
        text = f"Call {tool.name}" + (" with " + ", ".join(f"{k}={v}" for k, v in values.items()) if values else "")
    elif len(values) == 1 and rng.random() < 0.7:
        text = _single(rng, act, words, str(next(iter(values.values()))))
    elif len(given) == 2 and set(by_kind) == {"string", "integer"} and rng.random() < 0.4:
        number, string = values[by_kind["integer"].name], values[by_kind["string"].name]
        text = f"{words.verb} {number} {words.noun} {rng.choice(('for', 'to', 'in', 'of'))} {string}"
    else:
        said = [_said(rng, name, value) for name, value in values.items()]
        if rng.random() < 0.3:
            rng.shuffle(said)
        text = act + (" " + rng.choice(("with", "with", "for", "using")) + " " + _join(rng, said) if said else "")
    return Request(tool, polite(rng, text), values)


def _join(rng: random.Random, said: list[str]) -> str:
    if len(said) > 1 and rng.random() < 0.7:
        return ", ".join(said[:-1]) + " and " + said[-1]
    return ", ".join(said)


def polite(rng: random.Random, text: str) -> str:
    """Turns a request into one of the ways people put it."""
    if text.startswith(("What", "Call")):
        return text
    chance = rng.random()
    if chance < 0.2:
        return f"Please {text}."
    if chance < 0.35:
        return f"Can you {text}?"
    if chance < 0.42:
        return f"I want to {text}."
    shown = text[0].upper() + text[1:] if chance < 0.85 else text
    return shown + rng.choice((".", ".", "", "!"))


def known_tool(source: Source) -> tuple[Tool, Callable[[], Request]]:
    """A tool from the list of everyday ones, such as the weather in a city, and a maker of requests for it."""
    rng = source.rng
    entry = rng.choice(_KNOWN)
    parameters: list[Parameter] = []
    kinds: list[str] = []
    for spec in entry["parameters"]:
        names, kind = spec.split(":")
        name = rng.choice(names.rstrip("?").split("|"))
        number = kind in {"integer", "small"}
        options = tuple(kind.split("/")) if "/" in kind else ()
        parameters.append(Parameter(name, "integer" if number else "string", not names.endswith("?"), options))
        kinds.append(kind)
    tool = Tool(rng.choice(entry["names"]), rng.choice(entry["descriptions"]), tuple(parameters))

    def request() -> Request:
        form: str = rng.choice(entry["requests"])
        values: Values = {}
        for index, (parameter, kind) in enumerate(zip(parameters, kinds, strict=True)):
            if f"{{{index}}}" in form:
                values[parameter.name] = _known_value(source, parameter, kind)
        return Request(tool, form.format(*(values.get(p.name, "") for p in parameters)), values)

    return tool, request


def _known_value(source: Source, parameter: Parameter, kind: str) -> str | int:
    if parameter.options:
        return source.rng.choice(parameter.options)
    if kind == "small":
        return source.rng.randrange(1, 100)
    return int(source.integer()) if kind == "integer" else source.value(kind)


def known_names() -> Iterable[str]:
    """Every tool name of the everyday list; the evaluation must not use one of them."""
    return (name for entry in _KNOWN for name in entry["names"])


def any_tool(source: Source, known_share: float = 0.25) -> tuple[Tool, Callable[[], Request]]:
    """A random tool or, for `known_share` of them, an everyday one, and a maker of requests for it."""
    if source.rng.random() < known_share:
        return known_tool(source)
    tool, words = random_tool(source)
    return tool, lambda: random_request(source, tool, words)


def tool_result(source: Source) -> str:
    """What a tool might return: an object, a number or a sentence."""
    rng = source.rng
    chance = rng.random()
    if chance < 0.6:
        fields: dict[str, str | int] = {}
        for _ in range(rng.randint(1, 3)):
            key = source.word() if rng.random() < 0.5 else rng.choice(TEXT_ARGUMENTS + NUMBER_ARGUMENTS)
            fields[key] = int(source.integer()) if rng.random() < 0.5 else source.value(rng.choice(_VALUE_KINDS))
        return json.dumps(fields)
    if chance < 0.75:
        return source.integer()
    return source.phrase() + rng.choice((".", "", ""))
