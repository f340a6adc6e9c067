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
_KEPT, _KEPT_LENGTH = 256, 1024


class Heads:
    """Renders the heads of requests to one `host`."""

    def __init__(self, host: bytes) -> None:
        self._host = host
        # By method, path, whether there is a length, and names: a head with places for the values, and its lines.
        self._forms: dict[tuple[str, str, bool, tuple[bytes, ...]], tuple[bytes, int]] = {}

    def render(self, method: str, path: str, headers: Headers, body_bytes: int) -> bytes:
        """The head of a request with a body of `body_bytes`. Raises ValueError where it would be anything but that one
        request: for control characters, names that are none, and headers that say where a body ends."""
        names, values = zip(*headers, strict=False) if headers else ((), ())
        has_length = body_bytes > 0 or method == "POST"
        form, lines = self._forms.get((method, path, has_length, names)) or self._form(method, path, has_length, names)
        head = form % ((*values, body_bytes) if has_length else values)
        # A value with a line break in it would be a header, or a whole request, of its own.
        if len(head) - len(head.translate(None, b"\r\n\0")) != 2 * lines:
            raise ValueError("control characters in a header")
        return head

    def _form(self, method: str, path: str, has_length: bool, names: tuple[bytes, ...]) -> tuple[bytes, int]:
        if not _METHOD.fullmatch(method) or method in _UNSUPPORTED:
            raise ValueError(f"not a method this client can use: {method!r}")
        if not _PATH.fullmatch(path):
            raise ValueError(f"not a path without spaces, control characters and non-ASCII ones: {path!r}")
        for name in names:
            if not _NAME.fullmatch(name):
                raise ValueError(f"not a header name: {name!r}")
            if name.lower() in _OURS:
                raise ValueError(f"a header that only the client may set: {name!r}")
        begin = f"{method} {path} HTTP/1.1\r\nhost: ".encode("ascii") + self._host + b"\r\n"
        named = b"".join(name.replace(b"%", b"%%") + b": %b\r\n" for name in names)
        text = begin.replace(b"%", b"%%") + named + (b"content-length: %d\r\n" if has_length else b"") + b"\r\n"
        form = text, text.count(b"\r\n")
        if len(self._forms) < _KEPT and len(form[0]) < _KEPT_LENGTH:
            self._forms[method, path, has_length, names] = form
        return form
