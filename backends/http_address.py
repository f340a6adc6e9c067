"""Where an engine listens, and how a connection to it comes to be: TCP, TLS over TCP, or a Unix socket.

Neighbours: http.py (the client of one address), http_tls.py (TLS), http_connection.py (what is made here).
"""

from __future__ import annotations

import asyncio
import os
import socket as socket_module
import ssl
from collections.abc import Callable
from urllib.parse import urlsplit

from backends.http_connection import Connection
from backends.http_tls import TlsLink, client_tls

_PORTS = {"http": 80, "https": 443}
# Silent for 10 s: asked every 5 s, given up after three questions. What was sent and not acknowledged: after 20 s.
_PATIENCE = (
    (socket_module.SOL_SOCKET, "SO_KEEPALIVE", 1),
    (socket_module.IPPROTO_TCP, "TCP_KEEPIDLE", 10),
    (socket_module.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
    (socket_module.IPPROTO_TCP, "TCP_KEEPCNT", 3),
    (socket_module.IPPROTO_TCP, "TCP_USER_TIMEOUT", 20_000),
)


class Address:
    """`http://host:port`, `https://host:port` or `unix:/path.sock`. `tls` says whom an https server may be; None stands
    for the certificate authorities of this machine. Its certificate must be for `server_name`, which is also the Host
    to send (`host_header`); empty, it is the host of the address.

    Raises ValueError for text it cannot understand, and for a `tls` that would not be used.
    """

    def __init__(self, text: str, tls: ssl.SSLContext | None = None, server_name: str = "") -> None:
        self.text = text
        self._socket_path = text.removeprefix("unix:") if text.startswith("unix:/") else ""
        self._host, self._port, self._tls = "", 0, tls
        if self._socket_path:
            self.host_header = b"localhost"
            scheme = "unix"
        else:
            parts = urlsplit(text)
            scheme = parts.scheme
            port = parts.port  # raises for what is no port
            if scheme not in _PORTS or not parts.hostname or parts.path not in ("", "/") or parts.query:
                raise ValueError(f"not an address of the form http[s]://host:port or unix:/path: {text!r}")
            if "@" in parts.netloc or parts.fragment:
                raise ValueError(f"an address has no user, password or fragment: {text!r}")
            self._host, self._port = parts.hostname, port or _PORTS[scheme]
            called = f"{server_name}:{self._port}" if server_name else parts.netloc
            self.host_header = called.encode("ascii")
        self._server_name = server_name or self._host
        if scheme == "https":
            self._tls = tls or client_tls()
        elif tls is not None:
            raise ValueError(f"TLS settings for an address without TLS: {text!r}")

    async def connect(self, make: Callable[[], Connection]) -> Connection:
        """An open connection, the TLS handshake included. Raises OSError, of which ssl.SSLError is one. Cancelled, it
        leaves nothing open."""
        loop = asyncio.get_running_loop()
        if self._socket_path:
            return (await loop.create_unix_connection(make, self._socket_path))[1]
        if self._tls is None:
            transport, connection = await loop.create_connection(make, self._host, self._port)
            _notice_partitions(transport)
            return connection
        context = self._tls
        transport, link = await loop.create_connection(
            lambda: TlsLink(loop, context, self._server_name, make()), self._host, self._port
        )
        _notice_partitions(transport)
        try:
            await link.ready
        except BaseException:
            link.abort()
            raise
        return link.connection


def _notice_partitions(transport: asyncio.BaseTransport) -> None:
    """A host that is gone without a word says nothing to those who only wait. The kernel asks it, and however busy the
    server is, its kernel answers: without that the connection ends within half a minute."""
    socket = transport.get_extra_info("socket")
    for level, name, value in _PATIENCE:
        if hasattr(socket_module, name):  # these are Linux's names
            socket.setsockopt(level, getattr(socket_module, name), value)


def reason(error: OSError) -> str:
    """Why there is no connection, in a few words for a log."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is refused: {error.verify_message.rstrip('.')}"
    if isinstance(error, ssl.SSLError):
        words = (error.reason or str(error)).replace("_", " ").lower()
        return f"the TLS handshake failed: {words}"
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)  # asyncio's own words repeat the address
    return error.strerror or str(error) or type(error).__name__
