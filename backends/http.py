"""The one HTTP/1.1 client for engines: pooled keep-alive connections to one address, over TCP, TLS or a Unix socket.

Neighbours: http_pool.py (who gets a connection), http_connection.py (one exchange on it), http_address.py (how it is
made), http_head.py (what is sent first), openai.py (what is asked), process.py (/health).
"""

from __future__ import annotations

import asyncio
import ssl

from backends.errors import BackendUnavailable
from backends.http_address import Address, reason
from backends.http_connection import Connection, NoAnswer
from backends.http_head import Headers, Heads
from backends.http_pool import Pool
from backends.http_response import HttpResponse
from backends.http_tls import client_tls

__all__ = ["HttpClient", "HttpResponse", "client_tls"]

# Larger bodies are written on their own instead of being copied behind the head.
_COPY_BYTES = 64 * 1024


class HttpClient:
    """Requests to one `address`: `http[s]://host:port` or `unix:/path.sock`. Belongs to one event loop.

    Timeouts are in seconds, `inf` for none: `connect` until a connection exists (waiting for one of `max_connections`,
    name look-up and TLS handshake included), `response` until status and headers, `idle` between two reads of a body
    while somebody waits for it (a reader that is slow itself never times out). A connection unused for
    `pool_idle_seconds` is closed within 1 s more: uvicorn and vLLM close theirs after 5 s. `tls` (see `client_tls`)
    says which servers are trusted; None: those with a certificate this machine's authorities have signed. `server_name`
    is whom the certificate must name where that is not the host of the address; the Host header names it as well.
    Raises ValueError for an address it cannot understand.
    """

    def __init__(
        self,
        address: str,
        *,
        tls: ssl.SSLContext | None = None,
        server_name: str = "",
        max_connections: int = 1024,
        connect_timeout_seconds: float = 5.0,
        response_timeout_seconds: float = 600.0,
        idle_timeout_seconds: float = 120.0,
        pool_idle_seconds: float = 3.5,
    ) -> None:
        self._address = Address(address, tls, server_name)
        self._timeouts = (response_timeout_seconds, idle_timeout_seconds)
        self._heads = Heads(self._address.host_header)
        self._pool = Pool(
            address,
            self._dial,
            max_connections=max_connections,
            connect_timeout_seconds=connect_timeout_seconds,
            idle_seconds=pool_idle_seconds,
            sweep_seconds=min(response_timeout_seconds, idle_timeout_seconds, pool_idle_seconds) / 4,
        )

    async def request(self, method: str, path: str, headers: Headers = (), body: bytes = b"") -> HttpResponse:
        """Returns when status and headers have arrived, whatever the status. The caller owns the response and must
        `close()` it. Host and Content-Length are set here; redirects are not followed; no HEAD, no CONNECT.

        Raises BackendUnavailable when nothing was sent, BackendTimeout, and BackendProtocolError when the connection
        broke or did not speak HTTP. Raises ValueError for what would not be sent as one request. Cancelling it closes
        the connection.
        """
        head = self._heads.render(method, path, headers, len(body))
        if len(body) <= _COPY_BYTES:
            head, body = head + body, b""
        connection = self._pool.take() or await self._pool.connect()
        try:
            return await connection.exchange(head, body)
        except NoAnswer:
            if not connection.used:
                raise
        # The server closed it while it was idle, crossing our request on the way. A fresh connection cannot fail like
        # this, so once is enough (RFC 9112 section 9.3.1).
        connection = await self._pool.connect(fresh=True)
        return await connection.exchange(head, body)

    def abandon(self, why: str) -> None:
        """Every request that still waits for status and headers raises BackendProtocolError, `why` being the message.
        Answers that have begun go on."""
        self._pool.abandon(why)

    async def aclose(self) -> None:
        """Closes all connections, those in use too, and returns when they are gone. Idempotent."""
        await self._pool.aclose()

    async def _dial(self) -> Connection:
        loop = asyncio.get_running_loop()

        def make() -> Connection:
            return Connection(loop, *self._timeouts, on_free=self._pool.free, on_lost=self._pool.forget)

        try:
            return await self._address.connect(make)
        except OSError as error:
            raise BackendUnavailable(f"No connection to {self._address.text}: {reason(error)}.") from error
