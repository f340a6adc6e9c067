"""An OpenAI body becomes the body of Ollama's native API, or an error that names what Ollama cannot do. Pure.

Ollama's own /v1 drops what it does not know (max_completion_tokens, tool_choice, n, the context size); here a field is
carried over, known to change nothing, or refused. Neighbours: calls.py (sends it), answer.py (the way back).
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator, Mapping
from typing import Any

from backends.base import InferenceRequest, Operation
from backends.errors import InvalidRequest

PATHS = {Operation.CHAT: "/api/chat", Operation.COMPLETION: "/api/generate"}

# OpenAI's (or vLLM's) name -> the name among Ollama's options.
_OPTIONS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "repetition_penalty": "repeat_penalty",
}
# They change nothing about the answer of a single local model. Ollama's prefix caches cannot be kept apart.
_WITHOUT_EFFECT = frozenset(
    {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "cache_salt"}
)
_READ_ELSEWHERE = frozenset({"model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "stop"})
# Only with the value that asks for nothing.
_NEUTRAL: Mapping[str, Any] = {
    "n": 1,
    "best_of": 1,
    "echo": False,
    "logit_bias": {},
    "ignore_eos": False,
    "min_tokens": 0,
    "parallel_tool_calls": True,
    "modalities": ["text"],
}
_CARRIED = _OPTIONS.keys() | _WITHOUT_EFFECT | _READ_ELSEWHERE
_EFFORTS: Mapping[str, Any] = {"none": False, "minimal": "low", "low": "low", "medium": "medium", "high": "high"}
_ROLES = {"developer": "system"}


def native_request(request: InferenceRequest, model: str, context_tokens: int | None) -> dict[str, Any]:
    """The body for PATHS[request.operation], asking `model` for a stream whatever the client wants.

    `context_tokens` goes along each time: without it Ollama takes a default of its own, and a changed one reloads the
    model. A prompt that does not fit is refused by Ollama instead of being cut silently. Raises InvalidRequest.
    """
    body: dict[str, Any] = json.loads(request.body)
    body = {name: value for name, value in body.items() if value is not None}
    native: dict[str, Any] = {"model": model, "stream": True, "truncate": False, "shift": False}
    native["options"] = _options(body, context_tokens)
    translated = _chat(body) if request.operation is Operation.CHAT else _completion(body)
    for name, value in body.items():
        if name not in _CARRIED and name not in translated.read:
            _refuse_unless_neutral(name, value)
    return native | translated.fields


def _refuse_unless_neutral(name: str, value: Any) -> None:
    if name not in _NEUTRAL:
        raise InvalidRequest(f"`{name}` is not supported by Ollama.", param=name)
    if value != _NEUTRAL[name]:
        raise InvalidRequest(f"`{name}` can only be {json.dumps(_NEUTRAL[name])} with Ollama.", param=name)


class _Translated:
    """What one endpoint's own fields became, and which they were."""

    def __init__(self, fields: dict[str, Any], *read: str) -> None:
        self.fields = {name: value for name, value in fields.items() if value is not None}
        self.read = frozenset(read)


def _options(body: Mapping[str, Any], context_tokens: int | None) -> dict[str, Any]:
    options = {native: body[name] for name, native in _OPTIONS.items() if name in body}
    cap = body.get("max_completion_tokens", body.get("max_tokens"))
    if cap is not None:
        # Everything else it takes for no end.
        if cap < 1:
            raise InvalidRequest("`max_tokens` should be at least 1 with Ollama.", param="max_tokens")
        options["num_predict"] = cap
    if "stop" in body:
        options["stop"] = [body["stop"]] if isinstance(body["stop"], str) else body["stop"]
    if context_tokens is not None:
        options["num_ctx"] = context_tokens
    return options


def _chat(body: Mapping[str, Any]) -> _Translated:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("`messages` should be a list with at least one message.", param="messages")
    fields: dict[str, Any] = {"messages": list(_messages(messages))}
    fields["format"] = _format(body.get("response_format"))
    fields["think"] = _effort(body.get("reasoning_effort"))
    if body.get("logprobs"):
        fields["logprobs"] = True
        fields["top_logprobs"] = body.get("top_logprobs")
    choice = body.get("tool_choice", "auto")
    if choice not in ("auto", "none"):
        raise InvalidRequest("`tool_choice` can only be auto or none with Ollama.", param="tool_choice")
    if choice == "auto":
        fields["tools"] = body.get("tools")
    read = ("messages", "response_format", "reasoning_effort", "logprobs", "top_logprobs", "tool_choice", "tools")
    return _Translated(fields, *read)


def _completion(body: Mapping[str, Any]) -> _Translated:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        (prompt,) = prompt
    if not isinstance(prompt, str):
        raise InvalidRequest("`prompt` can only be one text with Ollama.", param="prompt")
    suffix = body.get("suffix") or None
    # The prompt as it is, as every other engine takes it; only filling in the middle needs the model's template.
    return _Translated({"prompt": prompt, "suffix": suffix, "raw": suffix is None}, "prompt", "suffix")


def _messages(messages: list[Any]) -> Iterator[dict[str, Any]]:
    names: dict[str, str] = {}
    for number, message in enumerate(messages):
        place = f"messages[{number}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidRequest(f"`{place}` should be an object with a role.", param=place)
        role = message["role"]
        text, images = _content(message.get("content"), place)
        native: dict[str, Any] = {"role": _ROLES.get(role, role), "content": text}
        if images:
            native["images"] = images
        if message.get("tool_calls"):
            native["tool_calls"] = list(_tool_calls(message["tool_calls"], names, f"{place}.tool_calls"))
        if role == "tool":
            identity = str(message.get("tool_call_id") or "")
            native |= {"tool_call_id": identity, "tool_name": message.get("name") or names.get(identity, "")}
        yield native


def _content(content: Any, place: str) -> tuple[str, list[str]]:
    """The text of a message, and its images in base64."""
    if content is None or isinstance(content, str):
        return content or "", []
    texts, images = [], []
    parts: list[Any] = content if isinstance(content, list) else [None]
    for part in (each if isinstance(each, dict) else {} for each in parts):
        if part.get("type") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif part.get("type") == "image_url":
            images.append(_image(part.get("image_url"), f"{place}.content"))
        else:
            raise InvalidRequest(f"`{place}.content` can only hold text and images with Ollama.", param=place)
    return "".join(texts), images


def _image(value: Any, place: str) -> str:
    url = value.get("url") if isinstance(value, dict) else value
    head, comma, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    if not (comma and head.startswith("data:") and head.endswith(";base64")):
        # Fetching what a client names would let it reach into our network.
        raise InvalidRequest(f"`{place}`: an image should be a data: URL in base64; none are fetched.", param=place)
    try:
        base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest(f"`{place}`: the image is not valid base64.", param=place) from None
    return data


def _tool_calls(calls: Any, names: dict[str, str], place: str) -> Iterator[dict[str, Any]]:
    """Arguments are an object there and text here. Keeps each call's function in `names`, for its result to come."""
    listed: list[Any] = calls if isinstance(calls, list) else [None]
    for number, call in enumerate(listed):
        try:
            name, arguments = call["function"]["name"], json.loads(call["function"].get("arguments") or "{}")
        except (TypeError, KeyError, AttributeError, ValueError, RecursionError):
            arguments = name = None
        if not isinstance(arguments, dict) or not isinstance(name, str):
            text = f"`{place}[{number}]` should be a function with a name and arguments that are a JSON object."
            raise InvalidRequest(text, param=place)
        identity = str(call.get("id") or "")
        names[identity] = name
        yield {"id": identity, "function": {"index": number, "name": name, "arguments": arguments}}


def _format(wanted: Any) -> Any:
    """Ollama's `format`: a JSON schema, "json", or None for text."""
    kind = wanted.get("type") if isinstance(wanted, dict) else "text" if wanted is None else None
    if kind == "text":
        return None
    if kind == "json_object":
        return "json"
    schema = wanted.get("json_schema") if kind == "json_schema" else None
    if not isinstance(schema, dict) or not isinstance(schema.get("schema"), dict):
        raise InvalidRequest("`response_format` is text, json_object or json_schema.", param="response_format")
    return schema["schema"]


def _effort(wanted: Any) -> Any:
    if wanted is None:
        return None
    if not isinstance(wanted, str) or wanted not in _EFFORTS:
        text = f"`reasoning_effort` should be one of {', '.join(_EFFORTS)}."
        raise InvalidRequest(text, param="reasoning_effort")
    return _EFFORTS[wanted]
