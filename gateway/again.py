"""The head of an inference POST: what was parsed of it, and who was found to have sent it.

One that comes again (backends/http_repeated.py) is not parsed again, nor is its key looked up. Neighbours: listener.py
(keeps the last one of its connection), door.py (who sent it), call.py (one request with it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from backends.base import Operation
from backends.http_repeated import Repeated

if TYPE_CHECKING:
    from httptools import HttpRequestParser

    from gateway.auth import Principal
    from gateway.door import Door


class Head:
    """`headers` are (lower-case name, value), `fields` the same as a mapping. `door` has let `principal` in with it;
    None before."""

    __slots__ = ("door", "fields", "headers", "http_version", "keep_alive", "operation", "principal")

    def __init__(
        self, operation: Operation, headers: list[tuple[bytes, bytes]], http_version: str, *, keep_alive: bool
    ) -> None:
        self.operation = operation
        self.headers = headers
        self.fields = dict(headers)
        self.http_version = http_version
        self.keep_alive = keep_alive
        self.door: Door | None = None
        self.principal: Principal | None = None


def parsed(parser: HttpRequestParser, operation: Operation, headers: list[tuple[bytes, bytes]]) -> Head:
    """What `parser` has just found, with the `headers` that it has told of."""
    version = parser.get_http_version()
    return Head(operation, headers, version, keep_alive=version != "1.0" and parser.should_keep_alive())


class LastHead(Repeated):
    """What the calls of one connection begin with; `head` is there as soon as `body_in` has found it."""

    __slots__ = ("head",)

    head: Head

    def keep(self, data: bytes, head: Head) -> None:
        """A parser has found one `head` in `data`, which began where a request begins."""
        if self.learn(data):
            # Not that of the requests to come. Nobody needs it: what comes again has its body with it.
            head.fields[b"content-length"] = b""
            self.head = head
