"""A server that follows Ollama's documented protocol (docs/api.md of 0.33): paths, NDJSON, error texts and codes.

An answer has as many tokens as `num_predict` asks for (default 4), `token_seconds` apart; the prompt's words count as
its tokens. With tools it calls the first one. Runs in the test's own event loop.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator
from socket import SO_LINGER, SOL_SOCKET
from typing import Any, Self

from aiohttp import web

CONTEXT_TOKENS = 512


class OllamaServer:
    """One server on loopback. `bodies` are the requests as they came; `breaks_after` tokens it reports an error."""

    def __init__(self, *models: str, token_seconds: float = 0.0) -> None:
        self.models = models
        self.token_seconds = token_seconds
        self.breaks_after: int | None = None
        self.refusal: tuple[int, str] | None = None
        self.bodies: list[dict[str, Any]] = []
        self.running = 0
        self.version = "0.33.0"
        self.port = 0
        self._runner: web.AppRunner | None = None
        self._connections: set[asyncio.Transport] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_get("/api/tags", self._tags)
        app.router.add_get("/api/version", self._version)
        app.router.add_post("/api/chat", self._answer)
        app.router.add_post("/api/generate", self._answer)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def die(self) -> None:
        """Every connection is reset in the middle of what it does, and nobody listens any more."""
        for transport in self._connections:
            if not transport.is_closing():
                transport.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
                transport.abort()
        await self.__aexit__()

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": self.version})

    async def _tags(self, _: web.Request) -> web.Response:
        return web.json_response({"models": [{"name": name, "model": name, "size": 1} for name in self.models]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        self._connections.add(request.transport)
        body = await request.json()
        self.bodies.append(body)
        refusal = self._refuse(body)
        if refusal is not None:
            return refusal
        self.running += 1
        try:
            response = web.StreamResponse(headers={"content-type": "application/x-ndjson"})
            await response.prepare(request)
            for line in self._lines(body, request.path == "/api/chat"):
                await response.write(json.dumps(line).encode() + b"\n")
                await asyncio.sleep(self.token_seconds)
            await response.write_eof()
        finally:
            self.running -= 1
        return response

    def _refuse(self, body: dict[str, Any]) -> web.Response | None:
        name = body["model"] if ":" in body["model"] else f"{body['model']}:latest"
        options = body.get("options", {})
        if self.refusal is not None:
            return web.json_response({"error": self.refusal[1]}, status=self.refusal[0])
        if name not in self.models:
            return web.json_response({"error": f"model {name!r} not found, try pulling it first"}, status=404)
        if not isinstance(options.get("temperature", 0.0), int | float):
            return web.json_response({"error": 'option "temperature" must be of type float32'}, status=400)
        tokens, context = _words(body), options.get("num_ctx", CONTEXT_TOKENS)
        if tokens > context and body.get("truncate", True) is False:
            detail = {
                "code": 400,
                "message": f"request ({tokens} tokens) exceeds the available context size ({context} tokens)",
                "type": "exceed_context_size_error",
            }
            return web.json_response({"error": json.dumps({"error": detail})}, status=400)
        return None

    def _lines(self, body: dict[str, Any], chat: bool) -> Iterator[dict[str, Any]]:
        head = {"model": body["model"], "created_at": "2026-08-21T12:00:00.123456789Z"}
        tokens = body["options"].get("num_predict", 4)
        if chat and body.get("think"):
            yield {**head, "message": {"role": "assistant", "content": "", "thinking": "Hm."}, "done": False}
        if chat and body.get("tools"):
            name = body["tools"][0]["function"]["name"]
            call = {"function": {"index": 0, "name": name, "arguments": {"city": "Zürich", "days": 2}}}
            yield {**head, "message": {"role": "assistant", "content": "", "tool_calls": [call]}, "done": False}
            tokens = 0
        for token in range(tokens):
            if token == self.breaks_after:
                yield {"error": "an error was encountered while running the model"}
                return
            said: dict[str, Any] = {"response": f" {token}"}
            if chat:
                said = {"message": {"role": "assistant", "content": f" {token}"}}
            if body.get("logprobs"):
                said["logprobs"] = [{"token": f" {token}", "logprob": -0.5, "bytes": [32], "top_logprobs": []}]
            yield {**head, **said, "done": False}
        last: dict[str, Any] = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
        reason = "length" if tokens == body["options"].get("num_predict") else "stop"
        counts = {"prompt_eval_count": _words(body), "eval_count": tokens, "total_duration": 5_000_000}
        yield {**head, **last, "done": True, "done_reason": reason, **counts}


def _words(body: dict[str, Any]) -> int:
    texts = [message["content"] for message in body.get("messages", [])] or [body.get("prompt", "")]
    return sum(len(text.split()) for text in texts)
