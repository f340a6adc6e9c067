"""`upshift engine`: socket, signals and life of the engine process around server.py's app."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import stat
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn

from backends.gguf.demo import DEMO_MODEL_PATH
from backends.gguf.options import EngineOptions
from backends.gguf.runner import Engine
from backends.gguf.server import EngineApp

_GRACE_SECONDS = 5
# The engine thread must get the interpreter back quickly when a decode ends; the default is 5 ms.
_SWITCH_INTERVAL_SECONDS = 0.0005


class SocketInUse(Exception):
    """Another process listens there. The message says where."""


def serve(
    model: str,
    *,
    uds: str | None,
    host: str | None,
    port: int | None,
    names: tuple[str, ...],
    parallel: int | None,
    context_tokens: int | None,
    threads: int | None,
    max_waiting: int,
    exit_with_parent: bool,
) -> int:
    """Serves `model` (a path, or "demo") until SIGTERM or SIGINT; returns the exit code.

    None for a size means: chosen from the model and this machine. The cause of a failure is the last line of stderr.
    """
    path = DEMO_MODEL_PATH if model == "demo" else Path(model)
    options = EngineOptions(
        path=path, parallel=parallel, context_tokens=context_tokens, threads=threads, max_waiting=max_waiting
    )
    try:
        listener = _listen_unix(Path(uds)) if uds else _listen_tcp(host or "127.0.0.1", port or 0)
    except (OSError, SocketInUse) as error:
        return _fail(str(error))
    logging.basicConfig(level=logging.WARNING, format="upshift engine: %(levelname)s: %(message)s")
    sys.setswitchinterval(_SWITCH_INTERVAL_SECONDS)
    process = _Process(options, names or (path.stem,), listener, exit_with_parent=exit_with_parent)
    try:
        return process.run()
    finally:
        listener.close()
        if uds:
            Path(uds).unlink(missing_ok=True)


class _Process:
    """One run: uvicorn in this thread, the engine in its own."""

    def __init__(
        self, options: EngineOptions, names: tuple[str, ...], listener: socket.socket, *, exit_with_parent: bool
    ) -> None:
        self._options = options
        self._names = names
        self._listener = listener
        self._exit_with_parent = exit_with_parent
        self._engine: Engine | None = None
        self._app: EngineApp | None = None
        self._server = uvicorn.Server(
            uvicorn.Config(
                self._asgi,
                interface="asgi3",
                lifespan="on",
                proxy_headers=False,
                loop="uvloop",
                http="httptools",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=_GRACE_SECONDS,
            )
        )

    def run(self) -> int:
        # uvicorn raises the signal again once it is done; without handlers of ours that would end us by the signal.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: None)
        self._server.run(sockets=[self._listener])
        engine = self._engine
        if engine is None:
            return 1
        engine.shut_down()
        engine.join(_GRACE_SECONDS)
        return _fail(engine.failure) if engine.failure else 0

    async def _asgi(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            self._start_engine()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await send({"type": "lifespan.shutdown.complete"})
        elif self._app is not None:
            await self._app(scope, receive, send)

    def _start_engine(self) -> None:
        loop = asyncio.get_running_loop()
        self._engine = Engine(self._options, loop, self._on_engine_end)
        self._app = EngineApp(self._engine, self._names)
        self._engine.start()
        if self._exit_with_parent:
            # A thread, so that it is seen whatever the event loop is busy with.
            threading.Thread(target=self._end_with_parent, name="parent", daemon=True).start()
        where = self._listener.getsockname()
        address = where if isinstance(where, str) else f"http://{where[0]}:{where[1]}/v1"
        _say(f"loading {self._options.path} as {self._names[0]!r} on {address}")

    def _on_engine_end(self, _failure: str) -> None:
        self._server.should_exit = True

    def _end_with_parent(self) -> None:
        """The parent holds the other end of our standard input and never writes: its end is the parent's."""
        while os.read(sys.stdin.fileno(), 1024):
            pass
        where = self._listener.getsockname()
        if isinstance(where, str):
            with suppress(OSError):
                os.unlink(where)
                os.rmdir(os.path.dirname(where))  # the parent's private folder, now empty
        os._exit(0)


def _listen_unix(path: Path) -> socket.socket:
    """Bound and listening, for this user alone. Takes over a socket that nobody answers on."""
    listener = socket.socket(socket.AF_UNIX)
    if path.exists():
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise SocketInUse(f"{path} exists and is no socket")
        if listener.connect_ex(str(path)) == 0:
            raise SocketInUse(f"another process listens on {path}")
        listener.close()
        listener = socket.socket(socket.AF_UNIX)
        path.unlink()
    old = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(old)
    listener.listen(1024)
    return listener


def _listen_tcp(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        raise SocketInUse(f"cannot listen on {host}:{port}: {error.strerror}") from error
    listener.listen(1024)
    return listener


def _fail(message: str) -> int:
    _say(f"error: {message}")
    return 1


def _say(text: str) -> None:
    sys.stderr.write(f"upshift engine: {text}\n")
    sys.stderr.flush()
