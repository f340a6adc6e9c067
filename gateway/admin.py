"""The listener for those who operate the gateway: /metrics, /admin and health, apart from the clients' one.

It answers until the drain of the other one is over: that is when its figures matter. Neighbours: dataplane.py (the
clients' front), operators.py (which paths, whose), app.py (the routes behind both), server.py (opens and closes it).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

import uvicorn
from uvicorn.server import ServerState

from config.edge import AdminSettings
from gateway.dataplane import ASGIApp, Front, Scope
from gateway.errors import UnknownPath
from gateway.gateway import Gateway
from gateway.health import OPEN
from gateway.listener import connection_class
from gateway.middleware import HostGuard
from gateway.operators import check_on_theirs, is_for_operators, may_know_on_theirs

MAX_CONNECTIONS = 256
# How long a scrape may go on when everything else has ended.
CLOSE_SECONDS = 2.0


class AdminPlane(Front):
    """Answers operators' paths and health; no model can be used here."""

    def __init__(self, gateway: Gateway, admin: AdminSettings, control_plane: ASGIApp) -> None:
        super().__init__(control_plane, gateway.access_log)
        self._gateway = gateway
        self._admin = admin

    def may_know(self, scope: Scope) -> bool:
        """Whoever may see the figures."""
        return may_know_on_theirs(self._admin, self._gateway.settings, self._gateway.entrance, scope)

    def check(self, scope: Scope) -> None:
        """Raises what speaks against this request: UnknownPath for everything that is for clients."""
        # As the configuration in effect has it; what is asked here is asked seldom.
        guard = HostGuard(self._admin.host, self._gateway.settings.server.allowed_hosts)
        guard.check(scope["headers"], scope["http_version"])
        if is_for_operators(scope["path"]):
            check_on_theirs(self._admin, self._gateway.settings, self._gateway.entrance, scope)
        elif scope["path"] not in OPEN:
            raise UnknownPath("This listener is the operators'; models are served on the other one.")


class AdminListener:
    """Serves `plane` on `sockets`, which it closes. Belongs to one event loop."""

    def __init__(self, plane: Front, sockets: Sequence[socket.socket]) -> None:
        self._sockets = sockets
        self._state = ServerState()
        self._servers: list[asyncio.AbstractServer] = []
        self._connection = connection_class(plane, MAX_CONNECTIONS)
        self._config = uvicorn.Config(
            plane, http=self._connection, ws="none", lifespan="off", log_config=None, access_log=False
        )

    async def open(self) -> None:
        """Returns when it accepts connections."""
        self._config.load()
        loop = asyncio.get_running_loop()

        def connection() -> asyncio.Protocol:
            return self._connection(config=self._config, server_state=self._state, app_state={})

        for listener in self._sockets:
            self._servers.append(await loop.create_server(connection, sock=listener))

    def date(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """What every answer carries from now on."""
        self._state.default_headers = list(headers)

    async def close(self) -> None:
        """Lets nobody in any more and returns when nobody is left, soon."""
        for server in self._servers:
            server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(self._state.tasks, timeout=CLOSE_SECONDS)
        for connection in list(self._state.connections):
            connection.transport.abort()
