"""Two workers behind TLS: both show a new certificate soon after its files are there, or at once when told."""

from __future__ import annotations

import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from config.edge import TlsSettings
from tests.backends.certificates import authority, trusting, write_files
from tests.e2e.gateway import GatewayUnderTest, running_gateway
from tests.engine import wait_for
from tests.gateway.test_tls import replace


@pytest.fixture
def gateway(tmp_path: Path, tiny_model: Path) -> Iterator[GatewayUnderTest]:
    write_files(tmp_path)
    config = f"models: [{{name: m, gguf: {{source: {tiny_model}, threads: 1}}}}]\nserver: {{workers: 2}}\n"
    with running_gateway(
        tmp_path, config + "admin: {port: 0}\ntls: {certificate: server.pem, key: server.key}\n"
    ) as gateway:
        wait_for(gateway.ready)
        yield gateway


def serials(gateway: GatewayUnderTest, tries: int = 12) -> set[str]:
    """Of the certificates that so many new connections are shown; the kernel spreads them over the workers."""
    found = set()
    for _ in range(tries):
        tcp = socket.create_connection(("127.0.0.1", int(gateway.url.rpartition(":")[2])))
        with tcp, trusting().wrap_socket(tcp, server_hostname="localhost") as tls:
            found.add(str((tls.getpeercert() or {})["serialNumber"]))
    return found


def test_workers_show_the_newest_certificate_and_never_a_bad_one(gateway: GatewayUnderTest, tmp_path: Path) -> None:
    assert gateway.url.startswith("https://")
    assert gateway.http.get("/metrics").status_code == 404
    found = re.search(r"metrics and /admin are on (http://[0-9.:]+)", gateway.log.read_text())
    assert found
    assert "upshift_workers 2.0" in httpx.get(found[1] + "/metrics").text
    files = TlsSettings(certificate=str(tmp_path / "server.pem"), key=str(tmp_path / "server.key"))
    first = serials(gateway)
    assert len(first) == 1
    replace(files)
    wait_for(lambda: not serials(gateway) & first, seconds=20)
    second = serials(gateway)
    assert len(second) == 1
    authority().issue_cert("x").private_key_pem.write_to_path(files.key)
    wait_for(lambda: gateway.log.read_text().count("it is not the key") == 2, seconds=20)
    assert serials(gateway) == second
    replace(files)
    os.kill(gateway.process.pid, signal.SIGHUP)
    wait_for(lambda: not serials(gateway) & second, seconds=20)
