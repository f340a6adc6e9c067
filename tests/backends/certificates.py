"""A certificate authority that exists only while the tests run, and what it signs."""

from __future__ import annotations

import functools
import ssl
from pathlib import Path

import trustme

from backends.http_tls import client_tls


@functools.cache
def authority() -> trustme.CA:
    """The one that `trusting()` trusts."""
    return trustme.CA()


@functools.cache
def serving(*names: str) -> ssl.SSLContext:
    """For a server that is called by these names or addresses; loopback's without any."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority().issue_cert(*(names or ("127.0.0.1", "localhost"))).configure_cert(context)
    return context


@functools.cache
def trusting() -> ssl.SSLContext:
    """What a client has that trusts nobody else."""
    context = client_tls()
    context.load_verify_locations(cadata=authority().cert_pem.bytes().decode())
    return context


def write_files(folder: Path) -> tuple[Path, Path, Path]:
    """The authority's certificate, and loopback's with its key: for servers that want files."""
    certificate = authority().issue_cert("127.0.0.1", "localhost")
    paths = folder / "ca.pem", folder / "server.pem", folder / "server.key"
    authority().cert_pem.write_to_path(str(paths[0]))
    paths[1].write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    certificate.private_key_pem.write_to_path(str(paths[2]))
    return paths
