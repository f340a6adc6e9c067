"""Certificates for development: an authority of one's own and what it signs, made with the openssl program.

Neighbour: cli/tls.py. Why not a library: docs/decisions/013.
"""

from __future__ import annotations

import ipaddress
import re
import secrets
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

AUTHORITY_DAYS = 3650
# More than 398 days are refused by Apple's and Google's programs, more than 366 by Mozilla's advice.
LEAF_DAYS = 365

_NAME = re.compile(r"(\*\.)?[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*")
_KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]

_AUTHORITY = """
[req]
prompt = no
distinguished_name = subject
x509_extensions = extensions
[subject]
O = Upshift development
CN = Upshift development authority {serial}
[extensions]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
"""
_LEAF = """
[req]
prompt = no
distinguished_name = subject
[subject]
O = Upshift development
CN = {common_name}
[extensions]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = {purpose}
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = {names}
"""


class CannotMake(Exception):
    """Why there is no certificate, and what to do about it."""


@dataclass(frozen=True, slots=True)
class Made:
    """The files of one certificate and of the authority that signed it; whether that one is new."""

    certificate: Path
    key: Path
    authority: Path
    new_authority: bool


def make_server(folder: Path, names: tuple[str, ...]) -> Made:
    """A certificate for a server that is called by `names` (host names, addresses). Raises CannotMake."""
    return _make(folder, "server", names[0], "serverAuth", ", ".join(map(_alternative, names)))


def make_client(folder: Path, name: str) -> Made:
    """A certificate for the client `name`. Raises CannotMake."""
    if not _NAME.fullmatch(name):
        raise CannotMake(f"{name!r} is no name for a client: letters, digits, '.', '_' and '-'")
    return _make(folder, f"client-{name}", name, "clientAuth", f"DNS:{name}")


def _alternative(name: str) -> str:
    try:
        return f"IP:{ipaddress.ip_address(name)}"
    except ValueError:
        if not _NAME.fullmatch(name):
            raise CannotMake(f"{name!r} is neither a host name nor an address") from None
        return f"DNS:{name}"


def _make(folder: Path, stem: str, common_name: str, purpose: str, names: str) -> Made:
    """The authority of `folder` is used again where there is one, so that it needs to be trusted only once."""
    made = Made(folder / f"{stem}.pem", folder / f"{stem}.key", folder / "ca.pem", not (folder / "ca.pem").exists())
    authority_key = folder / "ca.key"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if made.new_authority:
            config = _AUTHORITY.format(serial=secrets.token_hex(4))
            target = ["-keyout", str(authority_key), "-out", str(made.authority)]
            _openssl(config, "req", "-x509", *_KEY, "-days", str(AUTHORITY_DAYS), "-sha256", *target)
        config = _LEAF.format(common_name=common_name[:64], purpose=purpose, names=names)
        with tempfile.NamedTemporaryFile(suffix=".csr") as request:
            _openssl(config, "req", "-new", *_KEY, "-keyout", str(made.key), "-out", request.name)
            signer = ["-CA", str(made.authority), "-CAkey", str(authority_key), "-set_serial", _serial()]
            times = ["-days", str(LEAF_DAYS), "-sha256", "-extensions", "extensions"]
            _openssl(config, "x509", "-req", "-in", request.name, *signer, *times, "-out", str(made.certificate))
        for public in (made.certificate, made.authority):
            public.chmod(0o644)
    except OSError as error:
        raise CannotMake(f"{error.filename or folder}: {error.strerror}") from error
    return made


def _serial() -> str:
    return f"0x{secrets.randbits(127) | 1 << 126:032x}"


def _openssl(config: str, command: str, *arguments: str) -> None:
    """Runs it with `config`; what it writes is for nobody else to read."""
    with tempfile.NamedTemporaryFile("w", suffix=".cnf") as file:
        file.write(config)
        file.flush()
        option = "-extfile" if command == "x509" else "-config"
        argv = ["openssl", command, *arguments, option, file.name]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, check=False, umask=0o077, timeout=60)
        except FileNotFoundError:
            raise CannotMake("there is no openssl program here; `apt install openssl` brings it") from None
        except subprocess.TimeoutExpired:
            raise CannotMake("openssl did not end within a minute") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise CannotMake(f"openssl {command} failed: {lines[-1] if lines else 'it said nothing'}")
