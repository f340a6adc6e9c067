"""The gateway on a real loopback socket, with fakes behind the Backend seam, inside the test's own event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn
from uvicorn.server import ServerState

from backends.factory import create_backends
from config.edge import AdminSettings
from config.schema import GgufSettings, ModelSettings, ServerSettings, Settings
from gateway.admin import AdminPlane
from gateway.app import create_app
from gateway.dataplane import DataPlane
from gateway.health import Readiness
from gateway.log import AccessLog
from gateway.served import MakeBackends
from gateway.server import connections_of
from gateway.tls import Certificates
from gateway.tls_link import over_tls
from routing.upstream import Upstream
from tests.backends.certificates import trusting
from tests.canary import PROMPT, kinds
from tests.fakes import FakeBackend

CHAT = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


@dataclass
class Gateway:
    """A running gateway and what tests ask it about. `written` is its access log's text; `backends` by model, where the
    next configuration finds its own."""

    app: DataPlane
    port: int
    client: httpx.AsyncClient
    state: ServerState
    access_log: AccessLog
    written: list[str]
    settings: Settings
    backends: dict[str, FakeBackend]
    certificates: Certificates | None = None

    async def reload(self, **changes: Any) -> None:
        """Another configuration: the first one with `changes`."""
        await self.app.gateway.apply(Settings.model_validate({**dict(self.settings), **changes}))

    @property
    def readiness(self) -> Readiness:
        return self.app.gateway.readiness

    @property
    def upstream(self) -> Upstream:
        return self.readiness.upstreams[0][1]

    async def chat(self, **fields: Any) -> httpx.Response:
        """One chat call, read to its end."""
        return await self.client.post(CHAT, json=body(**fields))

    async def settled(self) -> None:
        """Returns when no request is running any more, and all are written down."""
        async with asyncio.timeout(5):
            await all_served(self.state)
        await asyncio.sleep(0)  # the turn in which they are

    async def ready(self) -> None:
        """Returns when every upstream is."""
        async with asyncio.timeout(60):
            # States tell nobody of their changes.
            while any(u.backend.state != "ready" for _, u in self.readiness.upstreams):  # noqa: ASYNC110
                await asyncio.sleep(0.01)

    def disconnect(self) -> None:
        """Cuts every connection, as a client's end of them would."""
        for connection in list(self.state.connections):
            connection.connection_lost(None)

    def lines(self, event: str = "request") -> list[dict[str, Any]]:
        """The access log so far: of inference POSTs, or of all others ("control")."""
        self.access_log.flush()
        lines = [json.loads(line) for line in "".join(self.written).splitlines()]
        return [line for line in lines if line["event"] == event]

    async def metric(self, name: str, **labels: str) -> float | None:
        """One sample of /metrics; None where there is none with exactly these labels."""
        for line in await self.samples(name):
            sample, _, value = line.rpartition(" ")
            if _labels(sample) == labels:
                return float(value)
        return None

    async def samples(self, name: str) -> list[str]:
        """All lines of /metrics with this name."""
        operators = AdminPlane(self.app.gateway, AdminSettings(), self.app.control_plane)
        transport = httpx.ASGITransport(operators)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            text = (await client.get("/metrics")).text
        return [line for line in text.splitlines() if line.startswith((name + "{", name + " "))]

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A bare socket, for what no HTTP client would send."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            async with asyncio.timeout(10):
                yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def raw(self, sent: bytes) -> bytes:
        """Sends bytes and returns everything until the gateway closes."""
        async with self.connection() as (reader, writer):
            writer.write(sent)
            return await reader.read()


async def all_served(state: ServerState) -> None:
    """Returns when no call is running any more. Their tasks go on: with the next call of the same connection."""
    while state.tasks:  # noqa: ASYNC110 - uvicorn's own way to wait for them
        await asyncio.sleep(0)


def _labels(sample: str) -> dict[str, str]:
    inside = sample.partition("{")[2].rstrip("}")
    return {name: value.strip('"') for name, _, value in (pair.partition("=") for pair in inside.split(",") if pair)}


def body(**fields: Any) -> dict[str, Any]:
    """A chat request's JSON."""
    return {"model": "fake", "messages": [{"role": "user", "content": PROMPT}], **fields}


def request(payload: bytes | None = None, *headers: str, path: str = CHAT, method: str = "POST") -> bytes:
    """The bytes of a request as a client would send it."""
    payload = json.dumps(body()).encode() if payload is None else payload
    lines = [f"{method} {path} HTTP/1.1", "host: localhost", "content-type: application/json"]
    lines += headers or [f"content-length: {len(payload)}"]
    return "\r\n".join([*lines, "", ""]).encode() + payload


@contextlib.asynccontextmanager
async def serving(*backends: FakeBackend, edge: dict[str, Any] | None = None, **server: Any) -> AsyncIterator[Gateway]:
    """A gateway in front of `backends`, one model per backend and called like it; "alias" is one more name of the
    first. `server` are settings of the listener, `edge` those beside it: without `backends` also the models, which then
    get their real ones."""
    models = [served_model(backend.name, *(["alias"] if backend is backends[0] else [])) for backend in backends]
    by_name = {backend.name: backend for backend in backends}
    settings = Settings.model_validate(
        {"server": ServerSettings(port=0, **server), "models": tuple(models), **(edge or {})}
    )
    make: MakeBackends = (lambda model: [by_name[model.name]]) if backends else create_backends
    async with serving_settings(settings, make) as gateway:
        gateway.backends = by_name
        yield gateway


@contextlib.asynccontextmanager
async def serving_settings(settings: Settings, make_backends: MakeBackends) -> AsyncIterator[Gateway]:
    """The same with any settings and any backends."""
    written: list[str] = []
    access_log = AccessLog(written.append)
    app = create_app(settings, make_backends=make_backends, access_log=access_log)
    certificates = Certificates(settings.tls) if settings.tls is not None else None
    async with _lifespan(app), _listening(app, settings, certificates) as (port, state):
        address = f"{'http' if certificates is None else 'https'}://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=address, verify=trusting(), trust_env=False, timeout=10) as client:
            yield Gateway(app, port, client, state, access_log, written, settings, {}, certificates)
    assert kinds("".join(written).encode()) == set(), "its access log has a secret"


def served_model(name: str, *aliases: str) -> ModelSettings:
    """The settings of a model whose backend is called like it."""
    return ModelSettings(name=name, aliases=aliases, context_tokens=4096, gguf=GgufSettings(source="demo"))


@contextlib.asynccontextmanager
async def _lifespan(app: DataPlane) -> AsyncIterator[None]:
    started = asyncio.Event()
    ending: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    ending.put_nowait({"type": "lifespan.startup"})

    async def send(message: Any) -> None:
        assert not message["type"].endswith("failed"), message
        started.set()

    task = asyncio.create_task(app({"type": "lifespan", "asgi": {"version": "3.0"}}, ending.get, send))
    async with asyncio.timeout(10):
        await started.wait()
    try:
        yield
    finally:
        ending.put_nowait({"type": "lifespan.shutdown"})
        await task


@contextlib.asynccontextmanager
async def _listening(
    app: DataPlane, settings: Settings, certificates: Certificates | None
) -> AsyncIterator[tuple[int, ServerState]]:
    """What uvicorn's Server does, without its ticking: a test should not wait a tenth of a second to end."""
    http: Any = connections_of(settings, app)
    if certificates is not None:
        http = over_tls(http, certificates)
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", http=http)
    config.load()
    state = ServerState()
    protocol: Any = config.http_protocol_class
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: protocol(config=config, server_state=state, app_state={}), "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], state
    finally:
        server.close()
        for connection in list(state.connections):
            connection.transport.abort()
        if state.tasks:
            _, stuck = await asyncio.wait(state.tasks, timeout=5)
            for task in stuck:
                task.cancel()
            assert not stuck, "a request outlived its client"
