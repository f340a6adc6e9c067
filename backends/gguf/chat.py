"""Messages to prompt, by the model's own Jinja template, which is untrusted input: sandboxed, no loaders, bounded."""

from __future__ import annotations

import asyncio
import ctypes
import datetime
import json
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from math import inf
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEnvironment

MAX_TEMPLATE_BYTES = 512 * 1024
RENDER_SECONDS = 5.0
_MAX_REPEAT = 10_000
# They pad to any width, and no chat template needs them.
_PADDING_FILTERS = ("center", "format", "indent", "wordwrap")
_PADDING_METHODS = frozenset({"center", "expandtabs", "ljust", "rjust", "zfill"})

# For models without a template: the most common form, which llama.cpp falls back to as well.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class TemplateError(Exception):
    """The template is broken or refused these messages; the message is its own."""


class ChatTemplate:
    """A compiled chat template. Thread-safe."""

    def __init__(self, source: str | None, *, bos: str, eos: str) -> None:
        source = source or CHATML
        if len(source.encode()) > MAX_TEMPLATE_BYTES:
            raise TemplateError(f"the model's chat template is over {MAX_TEMPLATE_BYTES} bytes")
        environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = _tojson
        for name in _PADDING_FILTERS:
            del environment.filters[name]
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _strftime_now
        self._specials = {"bos_token": bos, "eos_token": eos}
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            raise TemplateError(f"the model's chat template does not compile: {error}") from error

    async def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None) -> str:
        """The prompt, ready for the assistant's answer. Beside the event loop, for the template is the model's and may
        take its time. Raises TemplateError."""
        loop = asyncio.get_running_loop()
        limit = _TimeLimit(loop, RENDER_SECONDS)
        try:
            return await loop.run_in_executor(None, self._render, messages, tools, limit)
        except _Overtime as error:
            raise TemplateError(f"the model's chat template took over {RENDER_SECONDS} s") from error
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise TemplateError(f"the model's chat template refused the messages: {error}") from error
        finally:
            limit.let_go()

    def _render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, limit: _TimeLimit) -> str:
        with limit:
            return self._template.render(messages=messages, tools=tools, add_generation_prompt=True, **self._specials)


class _Overtime(BaseException):
    """Raised inside a template that does not end. No Exception, so that no template construct swallows it."""


class _TimeLimit:
    """Interrupts the Python code that runs inside this context, in a thread of its own, after so many seconds there. A
    timer of the event loop watches: a thread that waits costs more than most templates."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float) -> None:
        self._loop, self._seconds = loop, seconds
        self._lock = threading.Lock()
        self._thread = 0
        self._ends_at = inf
        self._over = False
        self._wanted = True
        self._timer = loop.call_later(seconds, self._look)

    def __enter__(self) -> None:
        self._ends_at = time.monotonic() + self._seconds
        self._thread = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._over = True

    def let_go(self) -> None:
        """Nobody waits any more. What still runs is watched until it has ended."""
        self._wanted = False
        if self._over:
            self._timer.cancel()

    def _look(self) -> None:
        with self._lock:
            if self._over:
                return
            left = self._ends_at - time.monotonic()
            if left <= 0:
                overtime = ctypes.py_object(_Overtime)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self._thread), overtime)
                return
        # It had to wait for a thread, or still does.
        if self._wanted or self._thread:
            self._timer = self._loop.call_later(min(left, self._seconds), self._look)


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox of jinja2, plus a bound on what a template may multiply out of nothing."""

    intercepted_binops = frozenset({"*", "**", "%"})

    def wrap_str_format(self, value: Any) -> Any:
        """Jinja's hook for str.format, which pads as well: refused when called."""
        return None if super().wrap_str_format(value) is None else _refuse_format

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _PADDING_METHODS and super().is_safe_attribute(obj, attr, value)

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if (
            operator == "**"
            or (operator == "%" and isinstance(left, str))
            or any(isinstance(n, int) and abs(n) > _MAX_REPEAT for n in (left, right))
        ):
            raise jinja2.exceptions.SecurityError(
                f"{left!r:.40} {operator} {right!r:.40} is too much for a chat template"
            )
        return SandboxedEnvironment.call_binop(self, context, operator, left, right)


def _refuse_format(*_: Any, **__: Any) -> NoReturn:
    raise jinja2.exceptions.SecurityError("str.format is not allowed in a chat template")


def _tojson(value: Any, indent: int | None = None, **_ignored: Any) -> str:
    """As in transformers: no HTML escapes, so that the model sees the JSON it was trained on."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> NoReturn:
    raise jinja2.exceptions.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now(tz=datetime.UTC).strftime(format)


def plain_messages(messages: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """OpenAI messages as templates expect them: text parts joined, tool arguments as objects, absent fields absent."""
    return [_plain(message) for message in messages]


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in message.items() if value is not None}
    content = plain.get("content")
    if isinstance(content, list):
        plain["content"] = "".join(part["text"] for part in content)
    plain.setdefault("content", "")
    if plain["role"] == "developer":  # OpenAI's newer name; no template knows it
        plain["role"] = "system"
    if calls := plain.get("tool_calls"):
        plain["tool_calls"] = [_with_object_arguments(call) for call in calls]
    return plain


def _with_object_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call["function"])
    with suppress(ValueError, RecursionError):  # a model wrote it once; the template then shows the text as it is
        function["arguments"] = json.loads(function.get("arguments") or "{}")
    return {**call, "function": function}
