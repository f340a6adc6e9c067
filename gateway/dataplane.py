"""The front: inference POSTs, which connections hand over as calls, and the ASGI application for everything else.

An inference POST as ASGI costs twice as much, as a route inside FastAPI five times (docs/performance.md). Neighbours:
listener.py (tells the two apart by path and method), relay.py (the calls), app.py (the control plane behind),
middleware.py (what every request passes first), admin.py (the other front), log.py (a line for each request).
"""

from __future__ import annotations

import itertools
import re
import secrets
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from time import perf_counter
from typing import Any

from backends.base import Operation
from gateway.call import Call
from gateway.errors import GatewayError, MethodRefused, answer
from gateway.gateway import Gateway
from gateway.health import PROBES, TELLING
from gateway.log import AccessLog
from gateway.operators import check_on_main, is_for_operators, may_know_on_main
from gateway.paths import shown
from gateway.visitor import key_of

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

INFERENCE: dict[str, Operation] = {
    "/v1/chat/completions": Operation.CHAT,
    "/v1/completions": Operation.COMPLETION,
}

# What is asked every few seconds, for as long as the gateway runs: answered well it is no news, and would be most of
# the access log of a gateway that is little used.
_ROUTINE = PROBES | {"/metrics"}

# Harmless in headers and logs, and neither a key of ours nor a token that somebody has put there.
_SAFE_ID = re.compile(rb"(?!.*(?:up-[0-9A-Za-z]{39}|eyJ[\w-]+\.eyJ))[A-Za-z0-9._-]{1,128}")


class RequestIds:
    """Request ids: the client's own where it may be repeated, else unique ones."""

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

    def __init__(self, control_plane: ASGIApp, access_log: AccessLog) -> None:
        self.control_plane = control_plane
        self._access_log = access_log
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
        started = perf_counter()
        request_id = self._ids.choose(dict(scope["headers"]).get(b"x-request-id"))
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        told = _Answer(send, request_id, scope["scheme"])
        try:
            await self._answer(scope, receive, told)
        finally:
            if told.status >= 400 or scope["path"] not in _ROUTINE:
                self._access_log.add_control(
                    request_id=request_id,
                    method=scope["method"],
                    path=shown(scope["path"]),
                    status=told.status,
                    duration_seconds=perf_counter() - started,
                    key=key_of(scope),
                )

    async def _answer(self, scope: Scope, receive: Receive, send: _Answer) -> None:
        try:
            self.check(scope)
        except GatewayError as error:
            await send.refusal(error)
            return
        scope["state"]["may_know"] = scope["path"] in TELLING and self.may_know(scope)
        await self.control_plane(scope, receive, send)


class DataPlane(Front):
    """The clients' front. `gateway` is for whoever runs it."""

    def __init__(self, gateway: Gateway, control_plane: ASGIApp) -> None:
        super().__init__(control_plane, gateway.access_log)
        self.gateway = gateway

    def serve(self, call: Call) -> Coroutine[None, None, None]:
        """Answers an inference POST; the connection runs this as a task."""
        return self.gateway.relay.serve(call, self._ids.choose(call.head.fields.get(b"x-request-id")))

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


class _Answer:
    """What is sent for one request, as ASGI's `send`: with the request's id, and over TLS the word that a browser
    should not come without it again. `status` is what uvicorn says where nobody has answered."""

    def __init__(self, send: Send, request_id: str, scheme: str) -> None:
        self.status = 500
        self._send = send
        self._request_id = request_id
        self._more = [(b"x-request-id", request_id.encode())]
        if scheme == "https":
            self._more.append((b"strict-transport-security", b"max-age=31536000"))

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *self._more]
        await self._send(message)

    async def refusal(self, error: GatewayError) -> None:
        """The whole answer, and the end of the connection."""
        refusal = answer(error, self._request_id)
        headers = [*refusal.headers, (b"connection", b"close")]
        await self({"type": "http.response.start", "status": refusal.status, "headers": headers})
        await self({"type": "http.response.body", "body": refusal.body, "more_body": False})
