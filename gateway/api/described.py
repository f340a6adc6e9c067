"""What OpenAPI says of the operations that the gateway serves: its own routes as they are, and the inference POSTs.

Neighbours: openapi.py (who gets which document), ../dataplane.py (the inference POSTs, which are no routes), ../caps.py
and ../intake.py (what is refused of them).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from backends.base import Operation
from gateway import caps
from gateway.dataplane import INFERENCE

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_TEXTS: Schema = {"type": "array", "items": _TEXT}
_OBJECT: Schema = {"type": "object"}
_COUNT: Schema = {"type": "integer", "minimum": 1}
_CHOICES: Schema = {**_COUNT, "maximum": caps.MAX_CHOICES}
_ALTERNATIVES: Schema = {"type": "integer", "minimum": 0, "maximum": caps.MAX_ALTERNATIVES}
_PENALTY: Schema = {"type": "number", "minimum": -2, "maximum": 2}

# What every inference POST takes; engines may know more, which is passed on to them.
_SAMPLING: Schema = {
    "stream": {"type": "boolean"},
    "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
    "max_tokens": _COUNT,
    "n": _CHOICES,
    "temperature": {"type": "number", "minimum": 0, "maximum": 2},
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "frequency_penalty": _PENALTY,
    "presence_penalty": _PENALTY,
    "seed": {"type": "integer"},
    "stop": {"anyOf": [_TEXT, {**_TEXTS, "maxItems": caps.MAX_STOPS}]},
    "logit_bias": {"type": "object", "maxProperties": caps.MAX_BIASED_TOKENS},
    "user": _TEXT,
}
_MESSAGE: Schema = {
    "type": "object",
    "required": ["role"],
    "properties": {
        "role": {"enum": ["system", "developer", "user", "assistant", "tool"]},
        "content": {"anyOf": [_TEXT, {"type": "array", "items": _OBJECT}, {"type": "null"}]},
    },
}
_OWN: Mapping[Operation, Schema] = {
    Operation.CHAT: {
        "messages": {"type": "array", "minItems": 1, "items": _MESSAGE},
        "max_completion_tokens": _COUNT,
        "logprobs": {"type": "boolean"},
        "top_logprobs": _ALTERNATIVES,
        "response_format": _OBJECT,
        "tools": {"type": "array", "maxItems": caps.MAX_TOOLS, "items": _OBJECT},
        "tool_choice": {"anyOf": [_TEXT, _OBJECT]},
    },
    Operation.COMPLETION: {
        "prompt": {"anyOf": [_TEXT, _TEXTS]},
        "best_of": _CHOICES,
        "logprobs": _ALTERNATIVES,
        "echo": {"type": "boolean"},
        "suffix": _TEXT,
    },
}
_EXAMPLES: Mapping[Operation, Schema] = {
    Operation.CHAT: {"messages": [{"role": "user", "content": "Hello!"}]},
    Operation.COMPLETION: {"prompt": "Once upon a time"},
}
_ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {"message": _TEXT, "type": _TEXT, "code": _TEXT, "param": {"type": ["string", "null"]}},
        }
    },
}
_REFUSED = {"description": "What was wrong, in OpenAI's words.", "content": {"application/json": {"schema": _ERROR}}}


def closed(properties: Schema, required: Sequence[str]) -> Schema:
    """An object with these fields and no others."""
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def takes(schema: Schema) -> dict[str, Any]:
    """For `openapi_extra` of a route: it needs a JSON body like this."""
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def operations(routes: Iterable[BaseRoute]) -> dict[str, dict[str, Any]]:
    """The paths of an OpenAPI document for routes of FastAPI's."""
    found: dict[str, dict[str, Any]] = {}
    for route in routes:
        if isinstance(route, APIRoute):
            for method in sorted(route.methods or ()):
                found.setdefault(route.path_format, {})[method.lower()] = _operation(route, method.lower())
    return found


def _operation(route: APIRoute, method: str) -> dict[str, Any]:
    names = [part[1:-1] for part in route.path_format.split("/") if part.startswith("{")]
    described = {
        "operationId": f"{method}_{route.name}",
        "summary": route.summary or route.name.replace("_", " ").capitalize(),
        "parameters": [{"name": name, "in": "path", "required": True, "schema": _TEXT} for name in names],
        "responses": {str(route.status_code or 200): {"description": "Done."}, "default": _REFUSED},
    }
    return {**described, **(route.openapi_extra or {})}


def inference(models: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The paths of the inference POSTs, for somebody who may use these `models` (names and aliases)."""
    return {path: {"post": _post(operation, models)} for path, operation in INFERENCE.items()}


def _post(operation: Operation, models: Sequence[str]) -> dict[str, Any]:
    # JSON Schema wants at least one in an enumeration.
    model = {**_TEXT, **({"enum": list(models)} if models else {})}
    own = _OWN[operation]
    # What comes first of its own is what nobody can do without.
    body = {
        "type": "object",
        "required": ["model", next(iter(own))],
        "properties": {"model": model, **own, **_SAMPLING},
    }
    takes_it = takes(body)
    if models:
        example = {"model": models[0], **_EXAMPLES[operation], "max_tokens": 4}
        takes_it["requestBody"]["content"]["application/json"]["example"] = example
    answer = {"application/json": {"schema": _OBJECT}, "text/event-stream": {"schema": _TEXT}}
    return {
        "operationId": f"post_{operation}",
        "summary": f"OpenAI's {operation} request, passed on to the model's engine.",
        "responses": {"200": {"description": "Whole, or as events.", "content": answer}, "default": _REFUSED},
        **takes_it,
    }
