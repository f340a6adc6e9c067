"""TLS between a TCP transport and a connection, without I/O of its own: ssl.MemoryBIO in the middle.

asyncio's and uvloop's own TLS transports are not used, because uvloop drops what a slow reader has not taken yet when
the server closes, both take a cut-off stream for a complete one, and neither holds back what is to be encrypted.
Neighbours: http_address.py (makes it), http_connection.py (its user), gateway/tls_link.py (the other side).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import Generic, TypeVar, cast

from backends.http_connection import unread

# As much is handed on at once; a record has 16 KiB at most.
_READ_BYTES = 256 * 1024
_RECORD_BYTES = 16 * 1024

_CLOSED_EARLY = "the connection was closed during the TLS handshake"


def client_tls(ca_file: str | None = None) -> ssl.SSLContext:
    """Trusts the certificate authorities in `ca_file` (PEM), without it those of this machine; a server must have a
    certificate for the name or address it is called by. Raises OSError for a file that cannot be used."""
    context = ssl.create_default_context(cafile=ca_file)
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


Inner = TypeVar("Inner", bound=asyncio.Protocol)


class TlsLink(asyncio.Transport, asyncio.Protocol, Generic[Inner]):
    """The protocol of a TCP transport and the transport of `connection`. `ready` gets a result once the handshake is
    done, or the OSError that ended it. `hostname` is whom the server has to be; a server itself has None."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, context: ssl.SSLContext, hostname: str | None, connection: Inner
    ) -> None:
        super().__init__()
        self.connection = connection
        self.ready: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=hostname is None, server_hostname=hostname
        )
        self._tcp: asyncio.Transport
        self._established = False
        self._paused = False
        self._eof = False
        # Nothing is read or written any more, and why, if not for a regular end.
        self._ended = False
        self._error: Exception | None = None

    # -- asyncio.Protocol, called by the TCP transport -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._tcp = cast(asyncio.Transport, transport)
        self._shake_hands()

    def data_received(self, data: bytes) -> None:
        self._incoming.write(data)
        if self._established:
            self._deliver()
        else:
            self._shake_hands()

    def eof_received(self) -> bool:
        self._eof = True
        if self._established:
            self._deliver()
        else:
            self._end(ConnectionResetError(_CLOSED_EARLY))
        return True  # stays open until a slow reader has what came before

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._established:
            self._fail_handshake(self._error or exc or ConnectionResetError(_CLOSED_EARLY))
            return
        self._paused = False  # there is nobody left to be held back
        if exc is not None and not self._ended:
            self._incoming.write(unread(self._tcp))
        self._deliver()
        self.connection.connection_lost(self._error or exc)

    def pause_writing(self) -> None:
        self.connection.pause_writing()

    def resume_writing(self) -> None:
        self.connection.resume_writing()

    # -- asyncio.Transport, called by the connection -------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypts and sends all of it; whoever writes much minds pause_writing. A failure ends the connection."""
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._tls.write(rest) :]
        except ssl.SSLError as error:
            self._end(error)
        self._flush()

    def pause_reading(self) -> None:
        self._paused = True
        self._tcp.pause_reading()

    def resume_reading(self) -> None:
        self._paused = False
        self._tcp.resume_reading()
        # What lies here goes first. Not from within this call: the reader is in the middle of something.
        self._loop.call_soon(self._deliver)

    def is_closing(self) -> bool:
        return self._ended or self._tcp.is_closing()

    def abort(self) -> None:
        """Ends it now; says so in TLS as far as that needs no waiting."""
        if self._established and not self.is_closing():
            with contextlib.suppress(ssl.SSLError):
                self._tls.unwrap()
        self._end(None)

    def get_write_buffer_size(self) -> int:
        return self._tcp.get_write_buffer_size()

    # -- inside --------------------------------------------------------------------------------------------------------

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._flush()
            return
        except ssl.SSLError as error:
            self._fail_handshake(error)
            self._flush()  # the alert that tells the server why
            self._ended = True
            self._tcp.close()
            return
        self._flush()
        self._established = True
        self.connection.connection_made(self)
        if not self.ready.done():
            self.ready.set_result(None)
        self._deliver()

    def _fail_handshake(self, error: Exception) -> None:
        if not self.ready.done():
            self.ready.set_exception(error)
            self.ready.exception()  # seen: whoever waited may have been cancelled

    def _deliver(self) -> None:
        """Hands on what has come as long as it is wanted."""
        while not (self._paused or self._ended):
            data, over = self._decrypt()
            if data:
                self.connection.data_received(data)
            if over:
                self._end(self._error)
            elif len(data) < _READ_BYTES:
                self._flush()  # TLS itself may have something to answer
                return

    def _decrypt(self) -> tuple[bytes, bool]:
        """Up to _READ_BYTES (a record more), fewer if that is all for now; and whether the stream is over."""
        pieces: list[bytes] = []
        size = 0
        over = False
        try:
            while size < _READ_BYTES and not over:
                piece = self._tls.read(_RECORD_BYTES)
                pieces.append(piece)
                size += len(piece)
                over = not piece  # close_notify
        except ssl.SSLWantReadError:
            if self._eof:
                # Without close_notify anybody may have cut the connection (RFC 9112 section 9.8).
                self._error = ConnectionAbortedError("the TLS stream was cut off")
                over = True
        except ssl.SSLError as error:
            self._error = error
            over = True
        return (pieces[0] if len(pieces) == 1 else b"".join(pieces)), over

    def _end(self, error: Exception | None) -> None:
        if not self._ended:
            self._error = error
            self._flush()
            self._ended = True
            self._tcp.abort()

    def _flush(self) -> None:
        if self._outgoing.pending and not self._tcp.is_closing():
            self._tcp.write(self._outgoing.read())
