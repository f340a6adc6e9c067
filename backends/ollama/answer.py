"""Ollama's answer, NDJSON line by line, becomes OpenAI's: events as they come, or one body at the end. Pure.

Neighbours: calls.py (reads the lines), request.py (the way there).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from backends.base import InferenceRequest, Operation
from backends.errors import BackendProtocolError

MAX_LINE_BYTES = 4 * 1024 * 1024
_DONE = b"data: [DONE]\n\n"


class OllamaAnswer:
    """Translates the lines of one answer. `created` is Unix time in seconds. `feed` and `finish` raise
    BackendProtocolError for what is no answer, and for the error that Ollama reports in the middle of one."""

    def __init__(self, request: InferenceRequest, created: int) -> None:
        self._request = request
        self._chat = request.operation is Operation.CHAT
        self._kind = "chat.completion" if self._chat else "text_completion"
        prefix = "chatcmpl" if self._chat else "cmpl"
        self._head = {"id": f"{prefix}-{request.request_id}", "object": self._kind, "created": created}
        self._head["model"] = request.model
        self._rest = b""
        self._begun = False
        self._finish_reason: str | None = None
        self._usage: dict[str, int] = {}
        # The whole answer, for a client that wants no stream; of the tool calls also for one that does.
        self._texts: list[str] = []
        self._thoughts: list[str] = []
        self._logprobs: list[Any] = []
        self._tool_calls: list[dict[str, Any]] = []

    def feed(self, data: bytes) -> bytes:
        """The next bytes from Ollama, cut anywhere; the events that they complete, for a stream."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise BackendProtocolError("Ollama sent a line without end.")
        return b"".join(event for line in lines if line.strip() for event in self._take(line))

    def finish(self) -> bytes:
        """What is left to send when Ollama has closed its answer: the end of the stream, or the whole body."""
        last = b"".join(self._take(self._rest)) if self._rest.strip() else b""
        if self._finish_reason is None:
            raise BackendProtocolError("Ollama's answer ended before it was done.")
        return last + _DONE if self._request.stream else self._body()

    def _take(self, line: bytes) -> Iterator[bytes]:
        try:
            part = json.loads(line)
        except (ValueError, RecursionError):
            raise BackendProtocolError("Ollama sent a line that is not JSON.") from None
        if not isinstance(part, dict):
            raise BackendProtocolError("Ollama sent a line that is not a JSON object.")
        if "error" in part:
            raise BackendProtocolError(f"Ollama gave up: {part['error']}"[:1000])
        message = part.get("message") if self._chat else {"content": part.get("response")}
        delta = self._delta(message if isinstance(message, dict) else {})
        logprobs = part.get("logprobs") or []
        self._logprobs += logprobs
        if self._request.stream and (delta or logprobs):
            yield from self._opening()
            yield self._event(delta, logprobs)
        if part.get("done"):
            yield from self._end(part)

    def _delta(self, message: dict[str, Any]) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if text := message.get("content"):
            self._texts.append(str(text))
            delta["content"] = str(text)
        if thought := message.get("thinking"):
            self._thoughts.append(str(thought))
            delta["reasoning"] = str(thought)
        calls = [self._tool_call(call) for call in message.get("tool_calls") or ()]
        if calls:
            self._tool_calls += calls
            delta["tool_calls"] = calls
        return delta

    def _tool_call(self, call: Any) -> dict[str, Any]:
        """As OpenAI has it: numbered, identified, its arguments as text. Ollama sends each call whole."""
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BackendProtocolError("Ollama sent a tool call without a function.")
        index = len(self._tool_calls)
        arguments = json.dumps(function.get("arguments") or {}, separators=(",", ":"), ensure_ascii=False)
        identity = call.get("id") or f"call_{self._request.request_id}_{index}"
        shown = {"name": function["name"], "arguments": arguments}
        return {"index": index, "id": identity, "type": "function", "function": shown}

    def _opening(self) -> Iterator[bytes]:
        if self._chat and not self._begun:
            yield self._event({"role": "assistant", "content": ""}, [])
        self._begun = True

    def _end(self, part: dict[str, Any]) -> Iterator[bytes]:
        reason = "length" if part.get("done_reason") == "length" else "stop"
        self._finish_reason = "tool_calls" if self._tool_calls and reason == "stop" else reason
        prompt, completion = _count(part.get("prompt_eval_count")), _count(part.get("eval_count"))
        self._usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
        if self._request.stream:
            yield from self._opening()
            yield self._event({}, [], self._finish_reason)
            if self._request.include_usage:
                yield self._sse({"choices": [], "usage": self._usage})

    def _event(self, delta: dict[str, Any], logprobs: list[Any], finish_reason: str | None = None) -> bytes:
        choice: dict[str, Any] = {"index": 0}
        choice |= {"delta": delta} if self._chat else {"text": delta.get("content", "")}
        if logprobs:
            choice["logprobs"] = {"content": logprobs}
        return self._sse({"choices": [choice | {"finish_reason": finish_reason}]})

    def _sse(self, fields: dict[str, Any]) -> bytes:
        kind = f"{self._kind}.chunk" if self._chat else self._kind
        event = json.dumps({**self._head, "object": kind, **fields}, separators=(",", ":"), ensure_ascii=False)
        return b"data: " + event.encode() + b"\n\n"

    def _body(self) -> bytes:
        text = "".join(self._texts)
        choice: dict[str, Any] = {"index": 0}
        if self._chat:
            message: dict[str, Any] = {"role": "assistant", "content": text or (None if self._tool_calls else "")}
            if self._thoughts:
                message["reasoning"] = "".join(self._thoughts)
            if self._tool_calls:
                message["tool_calls"] = [{k: v for k, v in call.items() if k != "index"} for call in self._tool_calls]
            choice["message"] = message
        else:
            choice["text"] = text
        choice["logprobs"] = {"content": self._logprobs} if self._logprobs else None
        choice["finish_reason"] = self._finish_reason
        return json.dumps({**self._head, "choices": [choice], "usage": self._usage}, ensure_ascii=False).encode()


def _count(value: Any) -> int:
    """Ollama leaves a count out where it is 0, as for a prompt that it had computed before."""
    return value if isinstance(value, int) and value >= 0 else 0
