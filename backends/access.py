"""Where an engine that somebody else runs answers, whom it must be, and what it wants to see: address, TLS, API key.

Neighbours: config/remote.py (the settings), remote.py (uses it), http_tls.py (the TLS of one connection). Keys and
certificates that come from files are read again when the files change, as mounted secrets do.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from backends.http import HttpClient
from backends.http_tls import client_tls
from config.errors import ConfigError, Place, Problem
from config.remote import ClientTlsSettings, RemoteSettings
from config.schema import Settings

MAX_KEY_BYTES = 4096

Header = tuple[bytes, bytes]


class Unusable(Exception):
    """A file that was named cannot be used. The message is the cause; it never holds what the file says."""


class ApiKey:
    """The key for an endpoint, given or in a file; without either no key is sent. Shown nowhere, not even by repr.

    Raises Unusable for a file that holds no key."""

    __slots__ = ("_file", "_key", "_seen")

    def __init__(self, key: str = "", file: str | None = None) -> None:
        self._file = file
        self._key = key if file is None else _key_in(file)
        self._seen = _stamp(file)

    def __repr__(self) -> str:
        return "ApiKey()"

    def headers(self) -> tuple[Header, ...]:
        """What goes with every request."""
        return ((b"authorization", b"Bearer " + self._key.encode()),) if self._key else ()

    def refresh(self) -> None:
        """Reads the file again if it has changed. Raises Unusable, and goes on with the last key."""
        seen = _stamp(self._file)
        if self._file is not None and seen != self._seen:
            self._key = _key_in(self._file)
            self._seen = seen


class ClientTls:
    """The TLS context for one endpoint, from files that may change. Raises Unusable for those it cannot use."""

    __slots__ = ("_files", "_seen", "_settings", "context")

    def __init__(self, settings: ClientTlsSettings) -> None:
        self._settings = settings
        self._files = [file for file in (settings.ca_file, settings.certificate, settings.key) if file]
        self._seen = self._stamps()
        try:
            self.context = client_tls(settings.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise Unusable(f"ca_file {settings.ca_file} cannot be used: {_why(error)}") from None
        self._show_certificate()

    def refresh(self) -> None:
        """Takes over files that have changed, for connections made from now on. An authority that is no longer in
        `ca_file` stays trusted until the restart. Raises Unusable, and goes on with what it had."""
        seen = self._stamps()
        if seen == self._seen:
            return
        if self._settings.ca_file:
            try:
                self.context.load_verify_locations(self._settings.ca_file)
            except (OSError, ssl.SSLError) as error:
                raise Unusable(f"ca_file {self._settings.ca_file} cannot be used: {_why(error)}") from None
        self._show_certificate()
        self._seen = seen

    def _show_certificate(self) -> None:
        certificate, key = self._settings.certificate, self._settings.key
        if certificate is None:
            return
        try:
            # The callback instead of a prompt on the terminal where the key wants a password.
            self.context.load_cert_chain(certificate, key, password=_no_password)
        except (OSError, ssl.SSLError) as error:
            also = f" with key {key}" if key else ""
            raise Unusable(f"certificate {certificate}{also} cannot be used: {_why(error)}") from None

    def _stamps(self) -> list[Any]:
        return [_stamp(file) for file in self._files]


@dataclass(frozen=True, slots=True)
class Access:
    """All it takes to call one endpoint. `server_name` is whom its certificate must name, where that is not the host of
    `address`."""

    address: str
    tls: ClientTls | None = None
    server_name: str = ""
    key: ApiKey = field(default_factory=ApiKey)

    def client(self, **options: Any) -> HttpClient:
        """A new client of it; `options` as HttpClient's."""
        context = None if self.tls is None or not self.address.startswith("https:") else self.tls.context
        return HttpClient(self.address, tls=context, server_name=self.server_name, **options)

    def at(self, address: str, server_name: str = "") -> Access:
        """The same at another address."""
        return replace(self, address=address, server_name=server_name)

    def refresh(self) -> None:
        """Takes over keys and certificates that have changed. Raises Unusable, and goes on with those it had."""
        self.key.refresh()
        if self.tls is not None:
            self.tls.refresh()


def call_headers(request_id: str, credentials: Sequence[Header]) -> list[Header]:
    """What goes with every inference call: that it is JSON, whose request it is, and what lets us in."""
    return [(b"content-type", b"application/json"), (b"x-request-id", request_id.encode()), *credentials]


def access_to(address: str, remote: RemoteSettings) -> Access:
    """The access that `remote` describes. Raises ConfigError for a file that it cannot use; `check_access` says which
    of several, and where it is named."""
    try:
        key = ApiKey(remote.api_key.get_secret_value() if remote.api_key else "", remote.api_key_file)
        return Access(address, None if remote.tls is None else ClientTls(remote.tls), key=key)
    except Unusable as error:
        raise ConfigError("settings", (Problem((), str(error)),)) from None


def check_access(settings: Settings) -> None:
    """Raises ConfigError with every file for the access to endpoints that cannot be used, and its place."""
    problems: list[Problem] = []
    for index, model in enumerate(settings.models):
        for kind, remote in (("gguf", model.gguf), ("vllm", model.vllm)):
            if remote is not None:
                problems += _problems(remote, ("models", index, kind))
    if problems:
        raise ConfigError("settings", tuple(problems))


def _problems(remote: RemoteSettings, place: Place) -> Iterator[Problem]:
    try:
        ApiKey(file=remote.api_key_file)
    except Unusable as error:
        yield Problem((*place, "api_key_file"), str(error))
    try:
        if remote.tls is not None:
            ClientTls(remote.tls)
    except Unusable as error:
        yield Problem((*place, "tls"), str(error))


def _key_in(file: str) -> str:
    try:
        with Path(file).open("rb") as stream:
            text = stream.read(MAX_KEY_BYTES + 1).decode("ascii").strip()
    except OSError as error:
        raise Unusable(f"{file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise Unusable(f"{file} holds something else than a key") from None
    if not text or len(text) > MAX_KEY_BYTES or not all("!" <= character <= "~" for character in text):
        raise Unusable(f"{file} should hold one key in one line")
    return text


def _stamp(file: str | None) -> tuple[int, int] | None:
    """What changes when a file does; None where there is none."""
    try:
        found = os.stat(file) if file is not None else None
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_ino)


def _why(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "it is not PEM").replace("_", " ").lower()
    return error.strerror or str(error)


def _no_password() -> str:
    return ""
