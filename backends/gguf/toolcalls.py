"""Finds Hermes tool calls in an answer as it is written: `<tool_call>{"name": …, "arguments": {…}}</tool_call>`. Pure.

Text outside the tags passes at once, except an ending that may still become a tag. A call is known by its name and its
opening brace; its arguments then pass as they are written. What begins in another way waits for its closing tag and is
a call if it is valid, else given back as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from backends.gguf.text import overlap

OPEN, CLOSE = "<tool_call>", "</tool_call>"

_NAME = r'\s*\{\s*"name"\s*:\s*("(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")'
_NAMED = re.compile(_NAME)
_BEGUN = re.compile(rf'{_NAME}\s*,\s*"arguments"\s*:\s*(?=\{{)')
_TAG = re.compile(f"{OPEN}|{CLOSE}")


@dataclass(frozen=True, slots=True)
class CallStart:
    """A call of `name` begins; the pieces of its arguments follow."""

    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """The next piece of the current call's arguments. Together the pieces are JSON text, as in OpenAI's API."""

    text: str


Part = str | CallStart | Arguments


class _Place(Enum):
    """Where in the answer the parser stands."""

    TEXT = auto()
    HEAD = auto()
    ARGUMENTS = auto()
    TAIL = auto()


class ToolCallParser:
    """Feeds on text, gives back text and calls in their order. `calls` have begun; `cut` says that the last one did not
    come to its end."""

    def __init__(self) -> None:
        self.calls = 0
        self.cut = False
        self._held = ""
        self._place = _Place.TEXT
        self._object = _ObjectEnd()
        self._steps: dict[_Place, Callable[[list[Part]], bool]] = {
            _Place.TEXT: self._read_text,
            _Place.HEAD: self._read_head,
            _Place.ARGUMENTS: self._read_arguments,
            _Place.TAIL: self._read_tail,
        }

    def feed(self, text: str) -> list[Part]:
        """What became certain with `text`."""
        self._held += text
        found: list[Part] = []
        while self._steps[self._place](found):
            pass
        return found

    def flush(self) -> list[Part]:
        """The answer ended. An unclosed tag still counts when what follows it is a whole call. Of half a call the name
        is given where it is known, and nothing where it is not: the rest would be markup that nobody can use."""
        held, self._held = self._held, ""
        found: list[Part] = []
        if self._place is _Place.ARGUMENTS:
            self.cut = True
        elif self._place is _Place.HEAD and not self._whole_call(held, found):
            if named := _NAMED.match(held):
                self._start(named, found)
            elif not "{".startswith(held.strip()[:1]):
                found.append(OPEN + held)
            self.cut = True
        elif self._place is _Place.TEXT and held:
            found.append(held)
        return found

    # -- one step each: True when there may be more to read ------------------------------------------------------

    def _read_text(self, found: list[Part]) -> bool:
        before, tag, after = self._held.partition(OPEN)
        if tag:
            self._held, self._place = after, _Place.HEAD
        else:
            keep = overlap(before, OPEN)
            self._held = before[len(before) - keep :]
            before = before[: len(before) - keep]
        if before:
            found.append(before)
        return bool(tag)

    def _read_head(self, found: list[Part]) -> bool:
        begun = _BEGUN.match(self._held)
        if begun:
            self._start(begun, found)
            self._held, self._place, self._object = self._held[begun.end() :], _Place.ARGUMENTS, _ObjectEnd()
            return True
        inner, tag, after = self._held.partition(CLOSE)
        if tag:
            if not self._whole_call(inner, found):
                found.append(OPEN + inner + CLOSE)
            self._held, self._place = after, _Place.TEXT
        return bool(tag)

    def _read_arguments(self, found: list[Part]) -> bool:
        end = self._object.find(self._held)
        piece, self._held = self._held[:end], self._held[end:]
        if piece:
            found.append(Arguments(piece))
        if self._object.ended:
            self._place = _Place.TAIL
        return self._object.ended

    def _read_tail(self, _found: list[Part]) -> bool:
        tag = _TAG.search(self._held)
        if tag:
            self._held = self._held[tag.end() :]
            self._place = _Place.TEXT if tag[0] == CLOSE else _Place.HEAD
        return bool(tag)

    # -- calls ---------------------------------------------------------------------------------------------------

    def _start(self, named: re.Match[str], found: list[Part]) -> None:
        self.calls += 1
        found.append(CallStart(json.loads(named[1])))

    def _whole_call(self, inner: str, found: list[Part]) -> bool:
        """Whether `inner` is one; it may say the arguments first, more than they, or nothing of them."""
        try:
            call = json.loads(inner)
            name, arguments = call["name"], call.get("arguments", {})
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return False
        if not isinstance(name, str) or not isinstance(arguments, dict):
            return False
        self.calls += 1
        found += [CallStart(name), Arguments(json.dumps(arguments, ensure_ascii=False))]
        return True


class _ObjectEnd:
    """Looks for the brace that ends a JSON object, over pieces of its text."""

    def __init__(self) -> None:
        self.ended = False
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def find(self, text: str) -> int:
        """How much of `text` belongs to the object."""
        for index, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self.ended = True
                    return index + 1
        return len(text)
