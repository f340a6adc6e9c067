"""Real servers for the upstream client's contract, each over TCP, TLS and a Unix socket, in a process of its own.

`python -m tests.backends.contract_server KIND FOLDER` prints its addresses as JSON and runs until its stdin ends.
KIND is uvicorn (the server of vLLM and of the engines), aiohttp, or Debian's nginx, which stands before a uvicorn.
Every server knows the paths in ROUTES.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import uvicorn
from aiohttp import web

from tests.backends.certificates import write_files
from tests.debian import program

PIECE = b"x" * 65536
# Idle connections are closed after this many seconds, so that a test can wait for it.
KEEP_ALIVE_SECONDS = 1

# Bytes of endless answers that were written; calls that get no answer; clients that left before the end of theirs.
counters = {"offered": 0, "silent": 0, "left": 0}


class Call(Protocol):
    """One request, whatever the server. `argument` is what follows the route in the path."""

    argument: str

    async def read(self) -> bytes:
        """The whole body."""

    async def reply(self, status: int, body: bytes, *, close: bool = False) -> None:
        """A whole answer with its length."""

    async def write(self, piece: bytes) -> None:
        """One chunk of an answer in chunks. Raises OSError once the client has left."""


async def echo(call: Call) -> None:
    await call.reply(200, await call.read())


async def chunks(call: Call) -> None:
    body = await call.read()
    for at in range(0, max(len(body), 1), 1000):
        await call.write(body[at : at + 1000])


async def status(call: Call) -> None:
    await call.read()
    await call.reply(int(call.argument), b"")


async def refuse(call: Call) -> None:
    await call.reply(413, b"too large", close=True)


async def early(call: Call) -> None:
    await call.reply(200, b"early")


async def last(call: Call) -> None:
    await call.reply(200, await call.read(), close=True)


async def offer(call: Call) -> None:
    for _ in range(0, int(call.argument), len(PIECE)):
        await call.write(PIECE)
        counters["offered"] += len(PIECE)


async def stall(call: Call) -> None:
    await call.write(b"abc")
    await asyncio.Event().wait()


async def silent(_: Call) -> None:
    counters["silent"] += 1
    await asyncio.Event().wait()


async def broken(call: Call) -> None:
    await call.write(b"abc")
    raise RuntimeError("as intended")


async def count(call: Call) -> None:
    await call.reply(200, json.dumps(counters).encode())


ROUTES: dict[str, Callable[[Call], Awaitable[None]]] = {
    route.__name__: route for route in (echo, chunks, status, refuse, early, last, offer, stall, silent, broken, count)
}


# -- uvicorn ----------------------------------------------------------------------------------------------------------


class AsgiCall:
    """uvicorn tells of a client that has left by `receive` only; `send` is then silent."""

    def __init__(self, path: str, receive: Any, send: Any) -> None:
        self.route, _, self.argument = path.strip("/").partition("/")
        self.left = False
        self._receive = receive
        self._send = send
        self._begun = False

    async def read(self) -> bytes:
        body = b""
        more = True
        while more:
            message = await self._receive()
            body += message["body"]
            more = message.get("more_body", False)
        return body

    async def reply(self, status: int, body: bytes, *, close: bool = False) -> None:
        headers = [] if status in (204, 304) else [(b"content-length", b"%d" % len(body))]
        headers += [(b"connection", b"close")] if close else []
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def write(self, piece: bytes) -> None:
        await self._begin()
        await asyncio.sleep(0)  # for `watch`
        if self.left:
            raise ConnectionError
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": []})

    async def run(self) -> None:
        await ROUTES[self.route](self)
        if self._begun:
            await self._send({"type": "http.response.body", "body": b""})

    async def watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.left = True


async def asgi(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """The application."""
    call = AsgiCall(scope["path"], receive, send)
    if call.route not in ("offer", "stall", "silent"):
        await call.run()
        return
    running, watching = asyncio.ensure_future(call.run()), asyncio.ensure_future(call.watch())
    await asyncio.wait({running, watching}, return_when=asyncio.FIRST_COMPLETED)
    counters["left"] += call.left
    for task in (running, watching):
        task.cancel()
    await asyncio.gather(running, watching, return_exceptions=True)


class Server(uvicorn.Server):
    """One of several in a process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def serving_uvicorn(folder: Path) -> AsyncIterator[dict[str, str]]:
    """Addresses by transport."""
    _, certificate, key = write_files(folder)
    options: dict[str, Any] = {
        "log_config": None,
        "lifespan": "off",
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "http": "httptools",
    }
    path = str(folder / "server.sock")
    plain, tls = (socket.create_server(("127.0.0.1", 0)) for _ in range(2))
    configs = [
        (uvicorn.Config(asgi, **options), [plain]),
        (uvicorn.Config(asgi, ssl_certfile=certificate, ssl_keyfile=key, **options), [tls]),
        (uvicorn.Config(asgi, uds=path, **options), None),
    ]
    servers = [Server(config) for config, _ in configs]
    tasks = [
        asyncio.create_task(server.serve(sockets=sockets))
        for server, (_, sockets) in zip(servers, configs, strict=True)
    ]
    await until(lambda: all(server.started for server in servers))
    try:
        yield {
            "tcp": f"http://127.0.0.1:{plain.getsockname()[1]}",
            "tls": f"https://127.0.0.1:{tls.getsockname()[1]}",
            "unix": f"unix:{path}",
        }
    finally:
        for server in servers:
            server.should_exit = server.force_exit = True
        await asyncio.gather(*tasks)


# -- aiohttp ----------------------------------------------------------------------------------------------------------


class AiohttpCall:
    """aiohttp cancels the call of a client that has left, or lets its writing fail."""

    def __init__(self, request: web.Request) -> None:
        self.route, _, self.argument = request.path.strip("/").partition("/")
        self.response = web.StreamResponse()
        self._request = request

    async def read(self) -> bytes:
        return await self._request.read()

    async def reply(self, status: int, body: bytes, *, close: bool = False) -> None:
        self.response = web.Response(status=status, body=body)
        if close:
            self.response.force_close()

    async def write(self, piece: bytes) -> None:
        if not self.response.prepared:
            self.response.enable_chunked_encoding()
            await self.response.prepare(self._request)
        await asyncio.sleep(0)  # writing to a client that has left never waits: there would be no time to notice
        if piece:
            await self.response.write(piece)


async def handle(request: web.Request) -> web.StreamResponse:
    """The application."""
    call = AiohttpCall(request)
    try:
        await ROUTES[call.route](call)
    except (asyncio.CancelledError, OSError):
        counters["left"] += 1
        raise
    return call.response


@contextlib.asynccontextmanager
async def serving_aiohttp(folder: Path) -> AsyncIterator[dict[str, str]]:
    """Addresses by transport."""
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", handle)
    runner = web.AppRunner(
        app, handler_cancellation=True, keepalive_timeout=KEEP_ALIVE_SECONDS, access_log=None, shutdown_timeout=0.1
    )
    await runner.setup()
    _, certificate, key = write_files(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    path = str(folder / "server.sock")
    for site in (
        web.TCPSite(runner, "127.0.0.1", 0),
        web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context),
        web.UnixSite(runner, path),
    ):
        await site.start()
    plain, tls = (address[1] for address in runner.addresses[:2])
    try:
        yield {"tcp": f"http://127.0.0.1:{plain}", "tls": f"https://127.0.0.1:{tls}", "unix": f"unix:{path}"}
    finally:
        await runner.cleanup()


# -- nginx ------------------------------------------------------------------------------------------------------------

NGINX_CONF = """
daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{}}
http {{
  access_log off; keepalive_timeout {keep_alive}s; client_max_body_size 64m;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{plain}; listen 127.0.0.1:{tls} ssl; listen unix:{folder}/nginx.sock;
    ssl_certificate {certificate}; ssl_certificate_key {key};
    proxy_http_version 1.1; proxy_buffering off; proxy_request_buffering off; proxy_set_header Connection "";
    location / {{ proxy_pass http://unix:{folder}/server.sock; }}
    location /refuse {{ client_max_body_size 1k; proxy_pass http://unix:{folder}/server.sock; }}
  }}
}}
"""


@contextlib.asynccontextmanager
async def serving_nginx(folder: Path) -> AsyncIterator[dict[str, str]]:
    """Addresses by transport."""
    nginx = program("nginx", "usr/sbin/nginx")
    async with serving_uvicorn(folder):
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
            plain, tls = one.getsockname()[1], other.getsockname()[1]
        _, certificate, key = write_files(folder)
        conf = folder / "nginx.conf"
        conf.write_text(
            NGINX_CONF.format(
                folder=folder, keep_alive=KEEP_ALIVE_SECONDS, plain=plain, tls=tls, certificate=certificate, key=key
            )
        )
        process = await asyncio.create_subprocess_exec(
            nginx, "-e", str(folder / "error.log"), "-p", str(folder), "-c", str(conf)
        )
        try:
            await until((folder / "nginx.sock").exists)
            yield {
                "tcp": f"http://127.0.0.1:{plain}",
                "tls": f"https://127.0.0.1:{tls}",
                "unix": f"unix:{folder}/nginx.sock",
            }
        finally:
            process.terminate()
            await process.wait()


async def until(condition: Callable[[], bool]) -> None:
    """Polls; nobody tells."""
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


KINDS = {"uvicorn": serving_uvicorn, "aiohttp": serving_aiohttp, "nginx": serving_nginx}


async def main(kind: str, folder: Path) -> None:
    """Until stdin ends."""
    async with KINDS[kind](folder) as addresses:
        print(json.dumps({**addresses, "ca": str(folder / "ca.pem")}), flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
