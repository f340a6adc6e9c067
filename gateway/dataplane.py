"""The front: inference POSTs, which connections hand over as calls, and the ASGI application for everything else.

An inference POST as ASGI costs twice as much, as a route inside FastAPI five times (docs/performance.md). Neighbours:
listener.py (tells the two apart by path and method), relay.py (the calls), app.py (the control plane behind),
middleware.py (what every request passes first), admin.py (the other front).
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

from backends.base import Operation
from gateway.call import Call
from gateway.errors import GatewayError, MethodRefused, answer
from gateway.gateway import Gateway
from gateway.health import TELLING
from gateway.operators import check_on_main, is_for_operators, may_know_on_main

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

INFERENCE: dict[str, Operation] = {
    "/v1/chat/completions": Operation.CHAT,
    "/v1/completions": Operation.COMPLETION,
}

_SAFE_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class RequestIds:
    """Request ids: the client's own where it is harmless in headers and logs, else unique ones."""

    def __init__(self) -> None:
        self._prefix = f"req-{secrets.token_hex(8)}-"
        self._numbers = itertools.count(1)

    def choose(self, offered: bytes | None) -> str:
        """`offered` is the value of x-request-id, None without one."""
        if offered is not None and _SAFE_ID.fullmatch(offered):
            return offered.decode()
        return f"{self._prefix}{next(self._numbers)}"


class Front:
    """Decides by path alone, never by Host or URL text, what reaches the `control_plane` behind it."""

    def __init__(self, control_plane: ASGIApp) -> None:
        self.control_plane = control_plane
        self._ids = RequestIds()

    def check(self, scope: Scope) -> None:
        """Raises the GatewayError that speaks against a request."""
        raise NotImplementedError

    def may_know(self, scope: Scope) -> bool:
        """Whether whoever asks for health may know of the models."""
        raise NotImplementedError

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI 3 entry: `http` and `lifespan` scopes."""
        if scope["type"] != "http":
            await self.control_plane(scope, receive, send)
            return
        request_id = self._ids.choose(dict(scope["headers"]).get(b"x-request-id"))
        try:
            self.check(scope)
        except GatewayError as error:
            await _refuse(error, request_id, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["may_know"] = scope["path"] in TELLING and self.may_know(scope)
        await self.control_plane(scope, receive, _with_headers(send, request_id, scope["scheme"]))


class DataPlane(Front):
    """The clients' front. `gateway` is for whoever runs it."""

    def __init__(self, gateway: Gateway, control_plane: ASGIApp) -> None:
        super().__init__(control_plane)
        self.gateway = gateway

    def serve(self, call: Call) -> Coroutine[None, None, None]:
        """Answers an inference POST; the connection runs this as a task."""
        headers = dict(call.headers)
        return self.gateway.relay.serve(call, headers, self._ids.choose(headers.get(b"x-request-id")))

    def check(self, scope: Scope) -> None:
        """Raises what speaks against a request that is no inference POST."""
        self.gateway.guard.check(scope["headers"], scope["http_version"])
        if scope["path"] in INFERENCE:
            raise MethodRefused("Use POST here.", allow="POST")
        if is_for_operators(scope["path"]):
            check_on_main(self.gateway.settings, self.gateway.entrance, scope)

    def may_know(self, scope: Scope) -> bool:
        """Where clients need a key, only with an operator's."""
        return may_know_on_main(self.gateway.settings, self.gateway.entrance, scope)


async def _refuse(error: GatewayError, request_id: str, send: Send) -> None:
    refusal = answer(error, request_id)
    headers = [*refusal.headers, (b"x-request-id", request_id.encode()), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": refusal.body, "more_body": False})


def _with_headers(send: Send, request_id: str, scheme: str) -> Send:
    """`send` with the request's id, and over TLS the word that a browser should not come without it again."""
    more = [(b"x-request-id", request_id.encode())]
    if scheme == "https":
        more.append((b"strict-transport-security", b"max-age=31536000"))

    async def send_with_more(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *more]
        await send(message)

    return send_with_more
