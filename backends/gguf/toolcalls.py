"""Finds Hermes tool calls in an answer as it is written: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`. Pure.

Text outside the tags passes at once, except an ending that may still become a tag. What stands between tags and is no
valid call is given back as text, so nothing that the model wrote is lost.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from backends.gguf.text import overlap

OPEN, CLOSE = "<tool_call>", "</tool_call>"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call. `arguments` is JSON text, as in OpenAI's API."""

    name: str
    arguments: str


class ToolCallParser:
    """Feeds on text, gives back text and whole calls in their order."""

    def __init__(self) -> None:
        self._held = ""
        self._inside = False

    def feed(self, text: str) -> list[str | ToolCall]:
        """What became certain with `text`."""
        self._held += text
        found: list[str | ToolCall] = []
        while True:
            tag = CLOSE if self._inside else OPEN
            before, match, after = self._held.partition(tag)
            if not match:
                break
            found.extend(_call_or_text(before) if self._inside else _text(before))
            self._held, self._inside = after, not self._inside
        if not self._inside:
            keep = overlap(self._held, OPEN)
            found.extend(_text(self._held[: len(self._held) - keep]))
            self._held = self._held[len(self._held) - keep :]
        return found

    def flush(self) -> list[str | ToolCall]:
        """The answer ended. An unclosed tag still counts when what follows it is a whole call."""
        held, self._held = self._held, ""
        return _call_or_text(held, closed=False) if self._inside else _text(held)


def _text(text: str) -> list[str | ToolCall]:
    return [text] if text else []


def _call_or_text(inner: str, *, closed: bool = True) -> list[str | ToolCall]:
    try:
        call = json.loads(inner)
        name, arguments = call["name"], call.get("arguments", {})
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return [OPEN + inner + (CLOSE if closed else "")]
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return [OPEN + inner + (CLOSE if closed else "")]
    return [ToolCall(name, json.dumps(arguments, ensure_ascii=False))]
