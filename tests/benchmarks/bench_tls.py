"""What TLS adds to a call, in CPU time of the gateway alone: connections in memory, the clients' side not counted.

Run as `python -m tests.benchmarks.bench_tls`; takes about ten seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import ssl
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from uvicorn.server import ServerState

from config.edge import TlsSettings
from config.schema import GgufSettings, ModelSettings, Settings
from gateway.app import create_app
from gateway.listener import connection_class
from gateway.tls import Certificates
from gateway.tls_link import ClientLink, over_tls
from tests.backends.certificates import trusting, write_files
from tests.benchmarks.bench_gateway import InstantBackend
from tests.benchmarks.bench_hot_path import BODY, STREAMED, CountingTransport, request
from tests.gateway.running import all_served

CONNECTIONS, TURNS, ROUNDS = 16, 10, 40


class Tcp(CountingTransport):
    """Keeps what is written, for the other side."""

    def __init__(self) -> None:
        self.written: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Kept."""
        self.written.append(data)

    def abort(self) -> None:
        """There is nothing to end."""


class Client:
    """One client's side of a TLS connection to `link`."""

    def __init__(self, link: ClientLink) -> None:
        self.link, self._tcp = link, Tcp()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = trusting().wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        link.connection_made(self._tcp)  # type: ignore[arg-type]
        self.handshake_seconds = 0.0
        for _ in range(4):
            self._step()

    def _step(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.do_handshake()
        sent = self._outgoing.read()
        began = time.process_time()
        if sent:
            self.link.data_received(sent)
        self.handshake_seconds += time.process_time() - began
        for data in self._tcp.written:
            self._incoming.write(data)
        self._tcp.written.clear()

    def encrypted(self, data: bytes) -> bytes:
        """`data` as it goes over the wire; what was answered before is dropped."""
        self._tcp.written.clear()
        self._tls.write(data)
        return self._outgoing.read()


async def cpu_seconds(state: ServerState, deliver: Callable[[], None]) -> float:
    """Of the gateway, for what `deliver` brings."""
    began = time.process_time()
    deliver()
    await all_served(state)
    return time.process_time() - began


async def measure() -> None:
    """Prints a line for each kind of answer, and one for the handshake."""
    model = ModelSettings(name="instant", gguf=GgufSettings(source="demo"))
    app = create_app(Settings(models=(model,)), make_backends=lambda _: [InstantBackend()])
    http: Any = connection_class(app, 2 * CONNECTIONS)
    config = uvicorn.Config(app, log_config=None, access_log=False, ws="none", http=http)
    config.load()
    state = ServerState()
    with tempfile.TemporaryDirectory() as folder:
        _, certificate, key = write_files(Path(folder))
        certificates = Certificates(TlsSettings(certificate=str(certificate), key=str(key)))
    arguments = {"config": config, "server_state": state, "app_state": {}}
    plain = [http(**arguments) for _ in range(CONNECTIONS)]
    for connection in plain:
        connection.connection_made(CountingTransport())
    clients = [Client(over_tls(http, certificates)(**arguments)) for _ in range(CONNECTIONS)]
    for name, body in (("JSON answer", BODY), ("stream of 64 events", STREAMED)):
        sent = request(body)
        found = [await _round(state, plain, clients, sent) for _ in range(ROUNDS)]
        without, over = (min(figures) / (TURNS * CONNECTIONS) * 1e6 for figures in zip(*found, strict=True))
        print(f"{name:<20} plain {without:7.1f} µs   TLS {over:7.1f} µs   +{over - without:.1f}")
    print(f"handshake            {min(client.handshake_seconds for client in clients) * 1e6:.0f} µs")


async def _round(state: ServerState, plain: list[Any], clients: list[Client], sent: bytes) -> tuple[float, float]:
    without = over = 0.0
    for _ in range(TURNS):
        without += await cpu_seconds(state, partial(_deliver, [(each, sent) for each in plain]))
        encrypted = [(client.link, client.encrypted(sent)) for client in clients]
        over += await cpu_seconds(state, partial(_deliver, encrypted))
    return without, over


def _deliver(reads: list[tuple[Any, bytes]]) -> None:
    for protocol, data in reads:
        protocol.data_received(data)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    uvloop.run(measure())
