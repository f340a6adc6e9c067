"""An engine that computes nothing and sees everything: what it was asked when, and how many requests at once."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from backends.base import Usage
from tests.canary import ANSWER
from tests.fakes import chat_body


@dataclass
class Witness:
    """`seen` has, of each request that came through, when its client sent it and when its answer was ready (monotonic
    ns); `most` is how many there were at once."""

    service_seconds: float
    usage: Usage
    port: int = 0
    running: int = 0
    most: int = 0
    seen: list[tuple[int, int]] = field(default_factory=list)

    async def answer(self, request: web.Request) -> web.Response:
        body: dict[str, Any] = await request.json()
        said = str(body["messages"][0]["content"]) if body.get("messages") else ""
        if said.startswith("echo "):
            # An engine that repeats in its refusal what it was sent.
            return web.json_response({"error": {"message": said}}, status=int(said.split()[1]))
        if said.startswith("cut "):
            assert request.transport is not None
            request.transport.abort()
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(self.service_seconds)
        finally:
            self.running -= 1
        self.seen.append((int(body.get("user") or 0), time.monotonic_ns()))
        return web.Response(body=chat_body(ANSWER, self.usage), content_type="application/json")


async def _models(_: web.Request) -> web.Response:
    return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})


@contextlib.contextmanager
def witnessing(service_seconds: float, usage: Usage) -> Iterator[Witness]:
    """One on a loopback port, in a thread of its own."""
    witness = Witness(service_seconds, usage)
    loop = asyncio.new_event_loop()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", witness.answer)
    app.router.add_get("/v1/models", _models)
    app.router.add_get("/health", _models)
    runner = web.AppRunner(app, access_log=None)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        witness.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield witness
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.run_until_complete(runner.cleanup())
        loop.close()
