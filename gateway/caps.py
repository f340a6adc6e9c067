"""Fields of a request that cost an engine without bound, and how much of each is let through.

Engines ran out of memory over them before they looked at anything else (n: CVE-2026-34756, best_of: CVE-2024-8939,
prompt_logprobs, grammars). Neighbours: intake.py (decodes the body, calls this).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gateway.errors import InvalidBody

# Of one completion request.
MAX_PROMPTS = 1024
# OpenAI's own bound of n.
MAX_CHOICES = 128
# vLLM's default for alternatives per token; its -1 is the whole vocabulary.
MAX_ALTERNATIVES = 20
MAX_STOPS = 64
MAX_STOP_CHARACTERS = 1024
# OpenAI's bound is 300 words of bias.
MAX_BIASED_TOKENS = 1024
# Of a grammar, a regex or a schema, keys and texts together.
MAX_GRAMMAR_CHARACTERS = 64 * 1024
# Agents send a hundred kilobytes of tools with each request.
MAX_TOOLS, MAX_TOOLS_CHARACTERS = 1024, 1024 * 1024
# A schema takes two levels for each of its own.
MAX_DEPTH = 128

# What is wrong with a value, or None.
Cap = Callable[[Any], str | None]


def _choices(value: Any) -> str | None:
    return f"should be at most {MAX_CHOICES}" if type(value) is int and value > MAX_CHOICES else None


def prompts(value: list[Any]) -> int:
    """How many prompts a `prompt` of a completion holds: whole numbers are the tokens of one, everything else is one
    by itself."""
    return sum(type(part) is not int for part in value) or 1


def _prompts(value: Any) -> str | None:
    too_many = isinstance(value, list) and prompts(value) > MAX_PROMPTS
    return f"should hold at most {MAX_PROMPTS} prompts" if too_many else None


def _refused(value: Any) -> str | None:  # noqa: ARG001 - one of the Caps
    return "is not passed on to engines"


def _template(value: Any) -> str | None:
    """The other way to bring a template along."""
    brings = isinstance(value, tuple) and any(name.casefold() == "chat_template" for name, _ in value)
    return "should not hold `chat_template`" if brings else None


def _alternatives(value: Any) -> str | None:
    # `logprobs` of chat is true or false, that of completions a number.
    within = not isinstance(value, int) or 0 <= value <= MAX_ALTERNATIVES
    return None if within else f"should be from 0 to {MAX_ALTERNATIVES}"


def _stops(value: Any) -> str | None:
    stops = value if isinstance(value, list) else [value]
    if len(stops) > MAX_STOPS:
        return f"should have at most {MAX_STOPS} entries"
    if any(isinstance(stop, str) and len(stop) > MAX_STOP_CHARACTERS for stop in stops):
        return f"should have at most {MAX_STOP_CHARACTERS} characters in each entry"
    return None


def _tokens(value: Any) -> str | None:
    # Objects are tuples of pairs here.
    too_many = isinstance(value, tuple | list) and len(value) > MAX_BIASED_TOKENS
    return f"should name at most {MAX_BIASED_TOKENS} tokens" if too_many else None


def _grammar(value: Any) -> str | None:
    if _characters(value, MAX_GRAMMAR_CHARACTERS) <= MAX_GRAMMAR_CHARACTERS:
        return None
    return f"should have at most {MAX_GRAMMAR_CHARACTERS} characters"


def _tools(value: Any) -> str | None:
    if isinstance(value, list) and len(value) > MAX_TOOLS:
        return f"should have at most {MAX_TOOLS} entries"
    too_long = _characters(value, MAX_TOOLS_CHARACTERS) > MAX_TOOLS_CHARACTERS
    return f"should have at most {MAX_TOOLS_CHARACTERS} characters" if too_long else None


CAPS: Mapping[str, Cap] = {
    "n": _choices,
    "best_of": _choices,
    "n_cmpl": _choices,
    "prompt": _prompts,
    "logprobs": _alternatives,
    "top_logprobs": _alternatives,
    "n_probs": _alternatives,
    "prompt_logprobs": _alternatives,
    "stop": _stops,
    "stop_token_ids": _stops,
    "bad_words": _tokens,
    "allowed_token_ids": _tokens,
    "logit_bias": _tokens,
    "response_format": _grammar,
    "structured_outputs": _grammar,
    "tools": _tools,
    "functions": _tools,
    "grammar": _grammar,
    "json_schema": _grammar,
    # They steer the engine and not the answer, and each was a way to crash one or to read its memory.
    "chat_parser": _refused,
    "chat_template": _refused,
    "chat_template_kwargs": _template,
    "id_slot": _refused,
    "kv_transfer_params": _refused,
    "mm_processor_kwargs": _refused,
    "n_discard": _refused,
    "priority": _refused,
    "prompt_embeds": _refused,
    "request_id": _refused,
}

# Searched only in a body that is long enough to hold too much of it.
_LONG: Mapping[Cap, int] = {_grammar: MAX_GRAMMAR_CHARACTERS, _tools: MAX_TOOLS}


def check(fields: Mapping[str, Any], body_bytes: int) -> None:
    """Raises InvalidBody for the first of the `fields` (names of CAPS among them, objects as tuples of pairs) that is
    too much. A short body is not searched for what it cannot hold."""
    for name, value in fields.items():
        cap = CAPS.get(name)
        if cap is None or value is None or body_bytes <= _LONG.get(cap, 0):
            continue
        wrong = cap(value)
        if wrong is not None:
            raise InvalidBody(f"`{name}` {wrong}.", param=name)


def check_depth(document: tuple[tuple[str, Any], ...]) -> None:
    """Raises InvalidBody naming the field whose value is nested more than MAX_DEPTH deep."""
    for name, value in document:
        level = [value]
        depth = 0
        while level:
            depth += 1
            if depth > MAX_DEPTH:
                raise InvalidBody(f"`{name[:64]}` is nested too deeply (more than {MAX_DEPTH}).", param=name[:64])
            # Pairs of an object are a level of the decoder's, not of the document's.
            level = [inner for item in level for inner in _inside(item)]


def _inside(value: Any) -> list[Any]:
    if isinstance(value, tuple):
        return [item for _, item in value if isinstance(item, tuple | list)]
    return [item for item in value if isinstance(item, tuple | list)] if isinstance(value, list) else []


def _characters(value: Any, enough: int) -> int:
    """Of all texts and keys in `value`, and one for each other value; no further than to more than `enough`."""
    waiting, found = [value], 0
    while waiting and found <= enough:
        item = waiting.pop()
        if isinstance(item, str):
            found += len(item)
        elif isinstance(item, tuple | list):
            waiting.extend(item)
        else:
            found += 1
    return found
