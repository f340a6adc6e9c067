"""A server that looks like vLLM from outside: its paths, error shapes, metrics and way of letting go; no model in it.

    async with Replica("llama3") as replica:
        replica.address      # http://127.0.0.1:PORT

An answer has as many tokens as `max_tokens` asks for (default 4), `token_seconds` apart. What tests look at and turn is
in the attributes. Runs in the test's own event loop.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import struct
from collections.abc import Sequence
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, Self

from aiohttp import web

CONTEXT_TOKENS = 512


class Replica:
    """One server on `host`; a port of its own unless one is given."""

    def __init__(
        self,
        *models: str,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        key: str = "",
        token_seconds: float = 0.0,
    ) -> None:
        self.models: Sequence[str] = models
        self.host = host
        self.port = port
        self.key = key
        self.token_seconds = token_seconds
        # To be turned by a test:
        self.health_status = 200
        self.metrics_status = 200
        self.refusal: tuple[int, dict[str, str]] | None = None  # status and headers instead of an answer
        self.hears = asyncio.Event()  # cleared, it accepts connections and says nothing
        self.hears.set()
        self.engines = 1
        self.version = "0.33.0"
        # What has happened:
        self.begun = 0
        self.finished = 0
        self.running = 0
        self.stuck = 0  # calls that came and were not heard
        self.hits = 0
        self.looks: dict[str, int] = {}
        self.seen_hosts: set[str] = set()
        self._tls = tls
        self._runner: web.AppRunner | None = None
        self._connections: set[asyncio.Transport] = set()

    @property
    def address(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.host}:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        app = web.Application(middlewares=[self._at_the_door])
        app.router.add_get("/health", self._health)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/version", self._version)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._chat)
        # As vLLM: a client that leaves ends the work for it.
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self.host, self.port, ssl_context=self._tls)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Orderly; idempotent."""
        self.hears.set()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def die(self) -> None:
        """Every connection is reset in the middle of what it does, and nobody listens any more."""
        for transport in self._connections:
            if transport.is_closing():
                continue
            transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            transport.abort()
        self._connections.clear()
        await self.stop()

    @web.middleware
    async def _at_the_door(self, request: web.Request, handler: Any) -> web.StreamResponse:
        assert request.transport is not None
        self._connections.add(request.transport)
        self.looks[request.path] = self.looks.get(request.path, 0) + 1
        self.seen_hosts.add(request.host)
        inference = request.method == "POST"
        self.stuck += inference
        try:
            await self.hears.wait()
        finally:
            self.stuck -= inference
        guarded = request.path.startswith("/v1")
        if guarded and self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        response: web.StreamResponse = await handler(request)
        return response

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=self.health_status)

    async def _models(self, _: web.Request) -> web.Response:
        data = [{"id": name, "object": "model", "owned_by": "vllm"} for name in self.models]
        return web.json_response({"object": "list", "data": data})

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": self.version})

    async def _metrics(self, _: web.Request) -> web.Response:
        lines = ["# HELP vllm:num_requests_running Running.", "# TYPE vllm:num_requests_running gauge"]
        for engine in range(self.engines):
            labels = f'{{engine="{engine}",model_name="{self.models[0]}"}}'
            lines += [
                f"vllm:num_requests_running{labels} {self.running / self.engines}",
                f"vllm:num_requests_waiting{labels} 1.0",
                f'vllm:num_requests_waiting_by_reason{labels[:-1]},reason="capacity"}} 7.0',
                f"vllm:kv_cache_usage_perc{labels} 0.25",
                f"vllm:prefix_cache_queries_total{labels} {2 * self.hits}.0",
                f"vllm:prefix_cache_hits_total{labels} {self.hits}.0",
                f"vllm:num_preemptions_total{labels} 0.0",
            ]
        return web.Response(text="\n".join([*lines, ""]), status=self.metrics_status)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        refusal = self._refuse(body)
        if refusal is not None:
            return refusal
        self.begun += 1
        self.running += 1
        try:
            answer = _Answer(body, request.path == "/v1/chat/completions")
            response = await (self._stream if body.get("stream") else self._whole)(request, answer)
            self.finished += 1
        finally:
            self.running -= 1
        return response

    def _refuse(self, body: dict[str, Any]) -> web.Response | None:
        if self.refusal is not None:
            status, headers = self.refusal
            return _error(status, "as the test wants it", headers=headers)
        if body.get("model") not in self.models:
            return _error(404, f"The model `{body.get('model')}` does not exist.", param="model")
        if not isinstance(body.get("messages", []), list):
            return _error(400, "Input should be a valid list", param="messages")
        if not isinstance(body.get("temperature", 1.0), int | float):
            return _error(400, "Input should be a valid number", param="temperature")
        asked = _words(body) + body.get("max_tokens", 4)
        if asked > CONTEXT_TOKENS:
            text = f"This model's maximum context length is {CONTEXT_TOKENS} tokens. However, you requested {asked}."
            return _error(400, text, param="input_tokens")
        return None

    async def _whole(self, _: web.Request, answer: _Answer) -> web.Response:
        for _token in range(answer.tokens):
            await asyncio.sleep(self.token_seconds)
        return web.json_response(answer.body())

    async def _stream(self, request: web.Request, answer: _Answer) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for event in answer.events():
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            await asyncio.sleep(self.token_seconds)
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response


class _Answer:
    """What is said to one request: " 0 1 2 …"."""

    def __init__(self, body: dict[str, Any], chat: bool) -> None:
        self.tokens = int(body.get("max_tokens", 4))
        self._body = body
        self._chat = chat
        self._usage = {"prompt_tokens": _words(body), "completion_tokens": self.tokens}
        self._usage["total_tokens"] = sum(self._usage.values())
        self._head = {"id": "cmpl-1", "created": 0, "model": body["model"]}

    def body(self) -> dict[str, Any]:
        text = "".join(f" {token}" for token in range(self.tokens))
        said = {"message": {"role": "assistant", "content": text}} if self._chat else {"text": text}
        choice = {"index": 0, **said, "finish_reason": "length"}
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._head, "object": kind, "choices": [choice], "usage": self._usage}

    def events(self) -> list[dict[str, Any]]:
        head = self._head | {"object": "chat.completion.chunk" if self._chat else "text_completion"}
        choices: list[dict[str, Any]] = []
        if self._chat:
            choices.append({"delta": {"role": "assistant", "content": ""}, "finish_reason": None})
        for token in range(self.tokens):
            said = {"delta": {"content": f" {token}"}} if self._chat else {"text": f" {token}"}
            choices.append({**said, "finish_reason": "length" if token == self.tokens - 1 else None})
        events = [{**head, "choices": [{"index": 0, **choice}]} for choice in choices]
        if (self._body.get("stream_options") or {}).get("include_usage"):
            events.append({**head, "choices": [], "usage": self._usage})
        return events


def _words(body: dict[str, Any]) -> int:
    texts = [str(message.get("content", "")) for message in body.get("messages", [])] or [str(body.get("prompt"))]
    return sum(len(text.split()) for text in texts)


def _error(
    status: int, message: str, *, param: str | None = None, headers: dict[str, str] | None = None
) -> web.Response:
    kind = {400: "BadRequestError", 404: "NotFoundError", 503: "Service Unavailable"}.get(status, "InternalServerError")
    detail = {"message": message, "type": kind, "param": param, "code": status}
    return web.json_response({"error": detail}, status=status, headers=headers)
