"""What a request begins with: its request line and headers as bytes, or a refusal to send what is not one request.

Neighbour: http.py (sends them).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

Headers = Sequence[tuple[bytes, bytes]]

_METHOD = re.compile(r"[A-Z]+")
_PATH = re.compile(r"/[!-~]*")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Answers to them are framed differently, which the client knows nothing of (RFC 9112 section 6.3).
_UNSUPPORTED = ("HEAD", "CONNECT")
# Where a message ends and whom it is for is said here and by nobody else.
_OURS = (b"host", b"content-length", b"transfer-encoding")
# What has been found good is not looked at twice: callers have few paths and few names, and short ones.
_KEPT, _KEPT_LENGTH = 256, 128


class Heads:
    """Renders the heads of requests to one `host`."""

    def __init__(self, host: bytes) -> None:
        self._after_path = b" HTTP/1.1\r\nhost: " + host + b"\r\n"
        self._beginnings: dict[tuple[str, str], bytes] = {}
        self._names: set[bytes] = set()

    def render(self, method: str, path: str, headers: Headers, body_bytes: int) -> bytes:
        """The head of a request with a body of `body_bytes`. Raises ValueError where it would be anything but that one
        request: for control characters, names that are none, and headers that say where a body ends."""
        beginning = self._beginnings.get((method, path))
        if beginning is None:
            beginning = self._begin(method, path)
        lines = [beginning]
        names = self._names
        for name, value in headers:
            if name not in names:
                self._check(name)
            lines.append(b"%b: %b\r\n" % (name, value))
        if body_bytes or method == "POST":
            lines.append(b"content-length: %d\r\n\r\n" % body_bytes)
            breaks = len(headers) + 4
        else:
            lines.append(b"\r\n")
            breaks = len(headers) + 3
        head = b"".join(lines)
        # A value with a line break in it would be a header, or a whole request, of its own.
        if len(head) - len(head.translate(None, b"\r\n\0")) != 2 * breaks:
            raise ValueError("control characters in a header")
        return head

    def _begin(self, method: str, path: str) -> bytes:
        if not _METHOD.fullmatch(method) or method in _UNSUPPORTED:
            raise ValueError(f"not a method this client can use: {method!r}")
        if not _PATH.fullmatch(path):
            raise ValueError(f"not a path without spaces, control characters and non-ASCII ones: {path!r}")
        beginning = f"{method} {path}".encode("ascii") + self._after_path
        if len(self._beginnings) < _KEPT and len(path) < _KEPT_LENGTH:
            self._beginnings[method, path] = beginning
        return beginning

    def _check(self, name: bytes) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"not a header name: {name!r}")
        if name.lower() in _OURS:
            raise ValueError(f"a header that only the client may set: {name!r}")
        if len(self._names) < _KEPT and len(name) < _KEPT_LENGTH:
            self._names.add(name)
