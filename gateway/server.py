"""Runs the gateway on uvicorn: bind, banner, drain, exit code.

Neighbours: app.py (what is run), listener.py (the protocol), workers/start.py (the caller; more than one process).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version

import uvicorn

from config.schema import Settings
from gateway import log
from gateway.admin import AdminListener, AdminPlane
from gateway.app import create_app
from gateway.bind import ListenError, bind
from gateway.bodies import Bodies
from gateway.crowd import Crowd
from gateway.dataplane import DataPlane
from gateway.lastcall import LAST_CALL_SECONDS, admit_no_more
from gateway.listener import ClientConnection, connection_class
from gateway.middleware import is_loopback
from gateway.reload import Reloader, Source, terminal_is_gone
from gateway.spool import Spool
from gateway.tls import CertificateRefused, Certificates
from gateway.tls_link import over_tls

# Looks at the certificate's files: twice a second.
TICKS_PER_LOOK = 5

logger = logging.getLogger("upshift")


def serve(source: Source) -> int:
    """Serves in this process until SIGTERM or SIGINT; returns its exit code: 0 after a drain, 1 where a second signal
    cut it short or no model could be loaded. Raises ListenError before anything is started."""
    settings = source.loaded.settings
    certificates = certificates_of(settings)
    sockets = bind(settings.server.host, settings.server.port)
    admin = bind(settings.admin.host, settings.admin.port, "admin.port") if settings.admin is not None else []
    log.configure(settings.log.format)
    raise_file_limit()
    with Spool(log.writer(sys.stdout)) as write:
        app = create_app(settings, access_log=log.access_log(settings.log.format, sys.stdout, write))
        port = sockets[0].getsockname()[1]
        reloader = Reloader(source, app.gateway.apply)
        operators = admin[0].getsockname()[1] if admin else 0
        server = GatewayServer(
            settings, app, lambda: announce(settings, port, operators), certificates, reloader, admin=admin
        )
        server.run(sockets=sockets)
    return 1 if server.force_exit or server.failed else 0


def certificates_of(settings: Settings) -> Certificates | None:
    """What the listener shows; None where it speaks plain HTTP. Raises ListenError for files that cannot be used."""
    try:
        return Certificates(settings.tls) if settings.tls is not None else None
    except CertificateRefused as error:
        raise ListenError(str(error)) from error


def connections_of(settings: Settings, app: DataPlane) -> type[ClientConnection]:
    """The protocol class of the clients' listener."""
    server = settings.server

    def is_proxy(peer: str) -> bool:  # by the configuration in effect
        return app.gateway.entrance.is_proxy(peer)

    crowd = Crowd(server.max_connections_per_address, is_proxy)
    return connection_class(app, server.max_connections, crowd, Bodies(server.max_bodies_bytes))


class GatewayServer(uvicorn.Server):
    """uvicorn with our signals: the first begins the drain, the second ends it; SIGHUP reads files again.
    `on_listening` is called once. Where somebody else brings it other configurations there is no `reloader`."""

    def __init__(
        self,
        settings: Settings,
        app: DataPlane,
        on_listening: Callable[[], None],
        certificates: Certificates | None = None,
        reloader: Reloader | None = None,
        *,
        admin: Sequence[socket.socket] = (),
    ) -> None:
        """`admin` are the sockets of the operators' listener; empty where there is none."""
        self._app = app
        self._admin: AdminListener | None = None
        if settings.admin is not None:
            self._admin = AdminListener(AdminPlane(app.gateway, settings.admin, app.control_plane), admin)
        self._certificates = certificates
        if certificates is not None:
            app.gateway.registry.register(certificates)
        self._reloader = reloader
        self._reloading: asyncio.Task[None] | None = None
        self._on_listening = on_listening
        self._drain_seconds = settings.server.drain_seconds
        self._drain_delay_seconds = settings.server.drain_delay_seconds
        self._hurried = asyncio.Event()
        self.failed = False
        connection = connections_of(settings, app)
        super().__init__(
            uvicorn.Config(
                app,
                loop="uvloop",
                http=connection if certificates is None else over_tls(connection, certificates),  # type: ignore[arg-type]
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                # uvicorn takes whole seconds only by its annotation; it hands the value to asyncio.wait_for.
                timeout_graceful_shutdown=settings.server.drain_seconds,  # type: ignore[arg-type]
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, and then the banner."""
        await super().startup(sockets=sockets)
        if self._admin is not None:
            await self._admin.open()
        # What exists now lives as long as the process. Left to the collector, each full collection would walk through
        # all of FastAPI and stop every stream for 20 ms.
        gc.collect()
        gc.freeze()
        # A request makes about a hundred containers and no cycles: by default every seventh would pay for a collection.
        gc.set_threshold(10_000, 10, 10)
        if self._reloader is not None:
            self._reloading = asyncio.create_task(self._reloader.run())
        self._on_listening()

    async def on_tick(self, counter: int) -> bool:
        """uvicorn's, ten times a second; ends a gateway none of whose models can be loaded."""
        if self._certificates is not None and counter % TICKS_PER_LOOK == 0:
            self._certificates.refresh()
        if self._app.gateway.readiness.hopeless and not self.should_exit:
            logger.error("no model can be served: stopping")
            self.failed = self.should_exit = True
        ending = await super().on_tick(counter)
        if self._admin is not None and counter % 10 == 0:
            self._admin.date(self.server_state.default_headers)
        return ending

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """uvicorn's, after a time in which everybody is served and asked to leave, and a moment in which nobody new is
        let in and everybody inside is served once more: it would reset connections whose request is on its way."""
        # Clients that send one request after the other end their connections themselves.
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        if not self.failed:
            await self._unless_hurried(self._drain_delay_seconds)
        self.keep_out(sockets or [])
        await asyncio.sleep(LAST_CALL_SECONDS)
        try:
            await super().shutdown(sockets=sockets)
        finally:
            if self._admin is not None:
                await self._admin.close()
                # What was asked there since the gateway stopped.
                self._app.gateway.access_log.flush()

    def keep_out(self, sockets: list[socket.socket]) -> None:
        """Nobody new connects to `sockets` any more; they are closed in a moment."""
        admit_no_more(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own raises the signal again after a clean shutdown, which would end the process by the signal
        where an exit code of 0 is due."""
        loop = asyncio.get_running_loop()
        handlers = self.handlers()
        for number, handler in handlers.items():
            loop.add_signal_handler(number, handler)
        try:
            yield
        finally:
            for number in handlers:
                loop.remove_signal_handler(number)

    def handlers(self) -> Mapping[signal.Signals, Callable[[], object]]:
        """What a signal does while this serves."""
        return {signal.SIGINT: self._on_signal, signal.SIGTERM: self._on_signal, signal.SIGHUP: self._on_hangup}

    def read_again(self) -> None:
        """Looks at files that may have changed; also unasked, a little later."""
        if self._certificates is not None:
            self._certificates.reload()
        if self._reloader is not None:
            self._reloader.ask()

    async def _unless_hurried(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hurried.wait()

    def drain(self) -> None:
        """Not ready any more, and no new connections after the delay; returns at once, the running answers go on."""
        if self._reloading is not None:
            self._reloading.cancel()
        self._app.gateway.readiness.draining = True
        self.should_exit = True

    def hurry(self) -> None:
        """Ends the drain."""
        self.force_exit = True
        self._hurried.set()

    def _on_signal(self) -> None:
        if self.should_exit:
            self.hurry()
            return
        self.drain()
        running = sum(upstream.in_flight for _, upstream in self._app.gateway.readiness.upstreams)
        logger.info(
            "stopping: %d answers are running and have %g s to finish; a second signal stops at once",
            running,
            self._drain_seconds,
        )

    def _on_hangup(self) -> None:
        if terminal_is_gone():
            self._on_signal()
        else:
            self.read_again()


def raise_file_limit() -> None:
    """Two descriptors per stream: the usual soft limit of 1024 ends at 500 clients."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def announce(settings: Settings, port: int, operators: int = 0, workers: int = 1) -> None:
    """Says where it listens and what is served, and warns of what should be known about that. `operators` is the port
    of their listener."""
    host = settings.server.host
    url = f"{'http' if settings.tls is None else 'https'}://{_shown(host)}:{port}"
    if sys.stderr.isatty():
        sys.stderr.write(banner(settings, url, workers))
    else:
        models = ", ".join(model.name for model in settings.models)
        logger.info("listening on %s, models: %s%s", url, models, f", workers: {workers}" if workers > 1 else "")
    if settings.admin is not None:
        logger.info("metrics and /admin are on http://%s:%d", _shown(settings.admin.host), operators)
    if settings.auth == "none" and not is_loopback(host):
        logger.warning("%s is reachable from other machines, and auth is none: whoever reaches it may use it", host)


def _shown(host: str) -> str:
    """How `host` stands in an address that somebody on this machine can use."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)


def banner(settings: Settings, url: str, workers: int = 1) -> str:
    """What a person at a terminal reads first: where, what, and a command to try."""
    also = f", with {workers} workers" if workers > 1 else ""
    lines = [f"Upshift {version('upshift')} listens on {url}/v1{also}"]
    for model in settings.models:
        also = f"  (also {', '.join(model.aliases)})" if model.aliases else ""
        lines.append(f"  {model.name:<24} {', '.join(model.places)}{also}")
    body = f'{{"model":"{settings.models[0].name}","stream":true,"messages":[{{"role":"user","content":"Hello!"}}]}}'
    lines += [
        "Try it:",
        f"  curl -N {url}/v1/chat/completions -H 'content-type: application/json' \\",
        f"    -d '{body}'",
    ]
    return "\n".join([*lines, "Ctrl-C stops it.", ""])
