"""OpenAI's answer shapes out of a request's outputs: whole bodies, and chunks of a stream. No I/O, no engine."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

from backends.gguf.generation import Generation, Output
from backends.gguf.sampler import TokenLogprob
from backends.gguf.toolcalls import Arguments, CallStart, Part, ToolCallParser

DONE = b"data: [DONE]\n\n"
Json = dict[str, Any]


class Answer:
    """One request's answer in one of the two dialects. Subclasses say how a choice looks."""

    object: ClassVar[str]
    chunk_object: ClassVar[str]
    prefix: ClassVar[str]

    def __init__(self, model: str, pieces: Sequence[bytes], generations: Sequence[Generation]) -> None:
        self._pieces = pieces
        self.generations = list(generations)
        self._head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    def chunks(self, output: Output) -> bytes:
        """Server-sent events for one output of the engine; empty where there is nothing to say yet."""
        return b"".join(self._event(choice) for choice in self.deltas(output))

    def opening(self) -> bytes:
        """Events before the first output."""
        return b""

    def usage_chunk(self) -> bytes:
        """The last event before [DONE], where the client asked for usage."""
        return _event({**self._head, "object": self.chunk_object, "choices": [], "usage": self.usage()})

    def body(self, outputs: Sequence[Sequence[Output]]) -> Json:
        """The whole answer; `outputs[i]` are those of choice i."""
        choices = [self.choice(index, collected) for index, collected in enumerate(outputs)]
        return {**self._head, "object": self.object, "choices": choices, "usage": self.usage()}

    def usage(self) -> Json:
        """Prompts are counted once, however many choices continue each."""
        prompts = {id(g.prompt): g for g in self.generations}.values()
        prompt_tokens = sum(len(g.prompt) for g in prompts)
        completion_tokens = sum(g.completion_tokens for g in self.generations)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(g.cached_tokens for g in prompts)},
        }

    def deltas(self, output: Output) -> list[Json]:
        """Choices of the chunks for one output."""
        raise NotImplementedError

    def choice(self, index: int, outputs: Sequence[Output]) -> Json:
        """One finished choice."""
        raise NotImplementedError

    def _event(self, choice: Json) -> bytes:
        return _event({**self._head, "object": self.chunk_object, "choices": [choice]})

    def _text_of(self, token: int) -> str:
        return self._pieces[token].decode("utf-8", "replace")


class ChatAnswer(Answer):
    """/v1/chat/completions. With `tools`, Hermes calls in the text become `tool_calls`, piece by piece."""

    object, chunk_object, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(
        self, model: str, pieces: Sequence[bytes], generations: Sequence[Generation], *, tools: bool, logprobs: bool
    ) -> None:
        super().__init__(model, pieces, generations)
        self._parsers = [ToolCallParser() if tools else None for _ in generations]
        self._logprobs = logprobs

    def opening(self) -> bytes:
        delta = {"role": "assistant", "content": ""}
        return b"".join(self._event(_chat_delta(g.index, delta, None, None)) for g in self.generations)

    def chunks(self, output: Output) -> bytes:
        """Most chunks differ from the one before in their text alone: everything around it is written once."""
        if output.finish_reason or self._logprobs or self._parsers[output.index] is not None:
            return super().chunks(output)
        before, after = self._around_text[output.index]
        return before + _dumps(output.text).encode("utf-8", "replace") + after

    @cached_property
    def _around_text(self) -> list[tuple[bytes, bytes]]:
        events = (self._event(_chat_delta(g.index, {"content": "\0"}, None, None)) for g in self.generations)
        return [(before, after) for before, _, after in (event.partition(b'"\\u0000"') for event in events)]

    def deltas(self, output: Output) -> list[Json]:
        index = output.index
        parts = self._parse(output)
        reason = self._reason(index, output.finish_reason)
        logprobs = self._logprobs_of([output])
        deltas = self._deltas_of(index, parts)
        if not deltas and (reason or logprobs):
            deltas = [{}]
        last = len(deltas) - 1
        return [
            _chat_delta(index, delta, logprobs if i == 0 else None, reason if i == last else None)
            for i, delta in enumerate(deltas)
        ]

    def choice(self, index: int, outputs: Sequence[Output]) -> Json:
        parts = [part for output in outputs for part in self._parse(output)]
        text = "".join(part for part in parts if isinstance(part, str))
        calls = _whole_calls(parts)
        message: Json = {"role": "assistant", "content": text if text.strip() or not calls else None, "refusal": None}
        if calls:
            message["tool_calls"] = calls
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs_of(outputs),
            "finish_reason": self._reason(index, outputs[-1].finish_reason),
        }

    def _deltas_of(self, index: int, parts: Sequence[Part]) -> list[Json]:
        parser = self._parsers[index]
        begun = parser.calls - sum(isinstance(part, CallStart) for part in parts) if parser else 0
        deltas: list[Json] = []
        for part in parts:
            if isinstance(part, str):
                deltas.append({"content": part})
            elif isinstance(part, CallStart):
                deltas.append({"tool_calls": [{"index": begun, **_new_call(part)}]})
                begun += 1
            else:
                deltas.append({"tool_calls": [{"index": begun - 1, "function": {"arguments": part.text}}]})
        return deltas

    def _parse(self, output: Output) -> list[Part]:
        parser = self._parsers[output.index]
        if parser is None:
            return [output.text] if output.text else []
        parts = parser.feed(output.text)
        return parts + parser.flush() if output.finish_reason else parts

    def _reason(self, index: int, reason: str | None) -> str | None:
        """A call that was cut is none to act upon: then the reason stays what cut it."""
        parser = self._parsers[index]
        called = parser is not None and parser.calls > 0 and not parser.cut
        return "tool_calls" if reason == "stop" and called else reason

    def _logprobs_of(self, outputs: Sequence[Output]) -> Json | None:
        if not self._logprobs:
            return None
        return {"content": [self._chat_logprob(o.logprob) for o in outputs if o.logprob], "refusal": None}

    def _chat_logprob(self, logprob: TokenLogprob) -> Json:
        top = [self._logprob_entry(token, value) for token, value in logprob.top]
        return {**self._logprob_entry(logprob.token, logprob.logprob), "top_logprobs": top}

    def _logprob_entry(self, token: int, logprob: float) -> Json:
        return {"token": self._text_of(token), "logprob": _finite(logprob), "bytes": list(self._pieces[token])}


class CompletionAnswer(Answer):
    """/v1/completions."""

    object, chunk_object, prefix = "text_completion", "text_completion", "cmpl"

    def __init__(
        self, model: str, pieces: Sequence[bytes], generations: Sequence[Generation], *, logprobs: bool
    ) -> None:
        super().__init__(model, pieces, generations)
        self._logprobs = logprobs
        self._offsets = [0] * len(generations)

    def deltas(self, output: Output) -> list[Json]:
        return [self.choice(output.index, [output])]

    def choice(self, index: int, outputs: Sequence[Output]) -> Json:
        return {
            "index": index,
            "text": "".join(output.text for output in outputs),
            "logprobs": self._logprobs_of(index, outputs) if self._logprobs else None,
            "finish_reason": outputs[-1].finish_reason,
        }

    def _logprobs_of(self, index: int, outputs: Sequence[Output]) -> Json:
        entries = [output.logprob for output in outputs if output.logprob]
        tokens = [self._text_of(entry.token) for entry in entries]
        offsets = []
        for token in tokens:
            offsets.append(self._offsets[index])
            self._offsets[index] += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [_finite(entry.logprob) for entry in entries],
            "top_logprobs": [{self._text_of(t): _finite(v) for t, v in entry.top} for entry in entries],
            "text_offset": offsets,
        }


def _chat_delta(index: int, delta: Json, logprobs: Json | None, reason: str | None) -> Json:
    return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}


def _new_call(start: CallStart) -> Json:
    function = {"name": start.name, "arguments": ""}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}


def _whole_calls(parts: Sequence[Part]) -> list[Json]:
    """The calls among `parts`, each with all of its arguments."""
    calls: list[Json] = []
    for part in parts:
        if isinstance(part, CallStart):
            calls.append(_new_call(part))
        elif isinstance(part, Arguments):
            calls[-1]["function"]["arguments"] += part.text
    return calls


def _finite(logprob: float) -> float:
    """JSON has no -Infinity; OpenAI documents -9999.0 for it."""
    return max(logprob, -9999.0)


_dumps: Callable[[Any], str] = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def _event(payload: Json) -> bytes:
    # A model can write an escaped lone surrogate into tool arguments; JSON cannot carry it.
    return f"data: {_dumps(payload)}\n\n".encode("utf-8", "replace")
