"""TLS between a client's TCP connection and ours: what backends/http_tls.py does for calls to engines, served.

uvloop's own server side counts nobody before the handshake is over, waits a minute for it, and reads its context once;
here connections are counted from their first packet, the handshake has the time of a request's head, and each
connection takes the newest certificate. Neighbours: listener.py (the connection inside), tls.py (the context).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Any, cast

from backends.http_tls import TlsLink
from gateway.listener import HEAD_TIMEOUT_SECONDS, LINGER_SECONDS, ClientConnection
from gateway.refusal import refusal
from gateway.tls import Certificates

_PLAIN = refusal(400, "https_required", "This port speaks HTTPS: use https:// in the URL.")


class ClientLink(TlsLink[ClientConnection]):
    """The protocol of a client's TCP transport and the transport of `connection`, which learns of it only when the
    handshake is done."""

    def __init__(self, loop: asyncio.AbstractEventLoop, context: ssl.SSLContext, connection: ClientConnection) -> None:
        super().__init__(loop, context, None, connection)
        self._deaf = False

    # -- asyncio.Protocol ----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._tcp = cast(asyncio.Transport, transport)
        connection = self.connection
        # Counted, and ended with the server, from now on; that it has begun it is told after the handshake.
        connection.transport = self
        connection.connections.add(connection)
        if len(connection.connections) > connection.max_connections or not connection.crowd.admit(connection, self):
            self._tcp.abort()
            return
        connection.deadline.expect(HEAD_TIMEOUT_SECONDS, self._tcp.abort)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        if not self._established and self._tls.version() is None and data[:1].isalpha() and not self._incoming.pending:
            self._refuse_plain()
            return
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        if self._established:
            self.connection.connection_lost(self._error or exc)
            return
        self.connection.deadline.close()
        self.connection.connections.discard(self.connection)
        self.connection.crowd.leave(self.connection)

    # -- asyncio.Transport ---------------------------------------------------------------------------------------------

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "sslcontext":
            return self._tls.context
        if name == "peercert":
            return self._tls.getpeercert()
        return self._tcp.get_extra_info(name, default)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Says that no more will come; what the client still sends is dropped."""
        self._deaf = True
        self._say_goodbye()
        self._tcp.write_eof()

    def close(self) -> None:
        """Once everything written has been sent."""
        if not self._established:
            self._tcp.abort()
        elif not self._ended:
            self._deaf = True
            self._say_goodbye()
            self._ended = True
            self._tcp.close()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _say_goodbye(self) -> None:
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()  # its answer is not waited for
        self._flush()

    def _refuse_plain(self) -> None:
        self._deaf = True
        self._tcp.write(_PLAIN)
        self._tcp.write_eof()
        self.connection.deadline.expect(LINGER_SECONDS, self._tcp.close)


def over_tls(connection: type[ClientConnection], certificates: Certificates) -> Callable[..., ClientLink]:
    """Makes the protocol of a new client: a `connection`, built with the arguments given, behind the newest context."""

    def make(**arguments: Any) -> ClientLink:
        return ClientLink(asyncio.get_running_loop(), certificates.context, connection(**arguments))

    return make
