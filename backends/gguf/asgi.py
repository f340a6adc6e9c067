"""What the engine's handlers need of ASGI: read a body, refuse, answer JSON. Knows no engine."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import ValidationError

MAX_BODY_BYTES = 32 * 2**20

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
_JSON = (b"content-type", b"application/json")


class Refused(Exception):
    """A request that gets an error answer."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after_seconds: int | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.retry_after_seconds = retry_after_seconds

    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class ClientGone(Exception):
    """The connection closed before the answer was complete."""


def check_content_type(scope: Scope) -> None:
    """Raises Refused for a POST that is not JSON: any other type a browser sends across origins without asking."""
    kind = dict(scope["headers"]).get(b"content-type", b"").partition(b";")[0].strip().lower()
    if scope["method"] == "POST" and kind != b"application/json":
        raise Refused(415, "unsupported_media_type", "Content-Type must be application/json")


async def read_body(receive: Receive) -> bytes:
    """The whole body. Raises Refused over the limit and ClientGone."""
    chunks, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > MAX_BODY_BYTES:
            raise Refused(413, "request_too_large", f"the body is over {MAX_BODY_BYTES} bytes")
        if not message.get("more_body"):
            return b"".join(chunks)


def refusal(error: ValidationError) -> Refused:
    """The first problem, in OpenAI's shape: the field by its path, the message without pydantic's own names."""
    problems = error.errors(include_url=False, include_input=False, include_context=False)
    # A union lists one problem per member; the member that was meant is the one that got furthest.
    problem = max((p for p in problems if p["loc"][:1] == problems[0]["loc"][:1]), key=lambda p: len(p["loc"]))
    if problem["type"] == "json_invalid":
        return Refused(400, "invalid_request", f"the body is not valid JSON: {problem['msg']}")
    # Members of a union appear in the path by their type ("list[str]"); clients know only fields and indices.
    path = [str(part) for part in problem["loc"] if isinstance(part, int) or part.isidentifier()]
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = "unknown field"
    if not path and ": " in message:
        path = [message.split(": ")[0]]
        message = message.split(": ", 1)[1]
    param = ".".join(path) or None
    return Refused(400, "invalid_request", f"{param}: {message}" if param else message, param=param)


async def send_refusal(send: Send, refused: Refused) -> None:
    """The error answer."""
    headers = [_JSON]
    if refused.retry_after_seconds is not None:
        headers.append((b"retry-after", str(refused.retry_after_seconds).encode()))
    await respond(send, refused.status, headers, json.dumps(refused.body()).encode())


async def send_json(send: Send, status: int, payload: dict[str, Any]) -> None:
    """A JSON answer."""
    await respond(send, status, [_JSON], json.dumps(payload, ensure_ascii=False).encode("utf-8", "replace"))


async def respond(send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    """A whole answer with its length."""
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})
