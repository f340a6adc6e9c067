"""What every request passes before anything else looks at it: Host, Origin and the number of header fields.

Neighbours: dataplane.py (calls this), listener.py (bounds the bytes of a header while it arrives).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence

from gateway.errors import HostRefused, OriginRefused, TooManyHeaders

MAX_HEADER_FIELDS = 100

_HOST = re.compile(rb"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{1,5})?")
_REMEMBERED_HOSTS = 64
_ORIGIN = re.compile(rb"(?P<scheme>[a-z][a-z0-9+.-]*)://(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]*)(?::[0-9]{1,5})?")
# What desktop applications send as their origin; no web page can.
_APPLICATIONS = frozenset((b"app", b"file", b"tauri", b"vscode-webview", b"vscode-file"))


class HostGuard:
    """Answers only requests that mean this listener.

    A web page can point its own name at 127.0.0.1 (DNS rebinding) and then talk to a loopback service as same-origin;
    its requests still carry its name in Host. So on a loopback address Host must be a loopback name or address, or one
    of `allowed`; elsewhere it must be well-formed. A page that sends its requests across origins is named in Origin,
    to which the same applies.
    """

    def __init__(self, listen_host: str, allowed: Iterable[str]) -> None:
        self._only_local = is_loopback(listen_host)
        self._allowed = {name.lower() for name in allowed}
        self._good: set[bytes] = set()

    def passes(self, headers: Mapping[bytes, bytes]) -> bool:
        """Whether `check` surely finds nothing, for headers of which none is repeated. Costs one lookup."""
        known = headers.get(b"host") in self._good and len(headers) <= MAX_HEADER_FIELDS
        return known and b"origin" not in headers

    def check(self, headers: Sequence[tuple[bytes, bytes]], http_version: str) -> None:
        """Raises HostRefused, OriginRefused or TooManyHeaders."""
        if len(headers) > MAX_HEADER_FIELDS:
            raise TooManyHeaders(f"More than {MAX_HEADER_FIELDS} header fields.")
        if self._only_local:
            for name, value in headers:
                if name == b"origin" and not self._is_origin_of_ours(value):
                    raise OriginRefused(
                        "This gateway listens on a loopback address and answers no web page of another site; "
                        "server.allowed_hosts in the configuration adds further names."
                    )
        hosts = [value for name, value in headers if name == b"host"]
        if len(hosts) == 1 and hosts[0] in self._good:
            return
        if len(hosts) != 1:
            if not hosts and http_version == "1.0":
                return
            raise HostRefused("Exactly one Host header is needed.")
        self._check(hosts[0])
        if len(self._good) < _REMEMBERED_HOSTS:
            self._good.add(hosts[0])

    def _check(self, host: bytes) -> None:
        match = _HOST.fullmatch(host)
        if match is None:
            raise HostRefused("The Host header is malformed.")
        name = match["name"].decode().lower()
        if self._only_local and not is_loopback(name) and name not in self._allowed:
            raise HostRefused(
                "This gateway listens on a loopback address and answers only to localhost; "
                "server.allowed_hosts in the configuration adds further names."
            )

    def _is_origin_of_ours(self, origin: bytes) -> bool:
        match = _ORIGIN.fullmatch(origin)
        if match is None:
            return False
        if match["scheme"] in _APPLICATIONS:
            return True
        name = match["name"].decode().lower()
        return match["scheme"] in {b"http", b"https"} and (is_loopback(name) or name in self._allowed)


def is_loopback(host: str) -> bool:
    """Whether a host name or address (IPv6 with or without brackets) can only mean this machine."""
    name = host.strip("[]").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
