"""Heads of requests that are not as simple as usual: a target with a query, an escape or a host, an offer to upgrade.
Pure.

Neighbour: listener.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

import httptools

from backends.base import Operation

_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


def operation_at(url: bytes, paths: Mapping[bytes, Operation]) -> Operation | None:
    """The operation whose path `url` leads to, None where there is none. Raises what httptools raises for no URL."""
    if url.startswith(b"/") and b"?" not in url and b"%" not in url:
        return None
    path: bytes = httptools.parse_url(url).path or b""
    return paths.get(unquote_to_bytes(path) if b"%" in path else path)


def without_upgrade(data: bytes) -> bytes:
    """The same request without its offer to speak another protocol, which a server may ignore. httptools would take the
    body for that protocol's bytes and drop it: Java's HttpClient offers h2c with every first request."""
    head, end, rest = data.partition(b"\r\n\r\n")
    return _UPGRADE.sub(b"\r\nx-ignored:", head) + end + rest
