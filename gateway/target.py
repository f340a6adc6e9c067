"""What is asked for at a request target that is not simply a path: one with a query, an escape or a host. Pure.

Neighbour: listener.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

import httptools

from backends.base import Operation


def operation_at(url: bytes, paths: Mapping[bytes, Operation]) -> Operation | None:
    """The operation whose path `url` leads to, None where there is none. Raises what httptools raises for no URL."""
    if url.startswith(b"/") and b"?" not in url and b"%" not in url:
        return None
    path: bytes = httptools.parse_url(url).path or b""
    return paths.get(unquote_to_bytes(path) if b"%" in path else path)
