"""How much memory the request bodies of a process take, so that large ones together cannot take all of it.

Neighbours: call.py (counts what arrives and what is gone), listener.py (one of these for all connections).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from gateway.auth import ANONYMOUS

# A body up to this is not counted: they are nearly all, and a connection has a few of them at most.
SMALL_BYTES = 64 * 1024


def is_long(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a request with these headers announces a body that counts, or does not say how long it is."""
    length = headers.get(b"content-length", b"")
    return not length.isdigit() or int(length[:20]) > SMALL_BYTES


def expects_continue(headers: Iterable[tuple[bytes, bytes]], http_version: str) -> bool:
    """Whether the client waits for a word before it sends the body. Nobody knew that word in HTTP/1.0."""
    return http_version != "1.0" and any(
        name == b"expect" and value.lower() == b"100-continue" for name, value in headers
    )


class Bodies:
    """`held` bytes of large bodies are in memory, of which `most` may be, and half of that for one key where there are
    keys."""

    __slots__ = ("_by_key", "held", "most")

    def __init__(self, most: int = 1 << 28) -> None:
        self.most = most
        self.held = 0
        self._by_key: dict[bytes, int] = {}

    def count(self, key: bytes, more: int) -> None:
        """So many bytes more are held for who has the key with this SHA-256; fewer, where it is negative."""
        self.held += more
        held = self._by_key.get(key, 0) + more
        if held:
            self._by_key[key] = held
        else:
            self._by_key.pop(key, None)

    def has_room(self, key: bytes, own: int) -> bool:
        """Whether a body that has `own` of what is held for `key` may go on. One that is alone always may."""
        by_key = self._by_key[key]
        share = self.most if key == ANONYMOUS else self.most // 2
        return self.held == own or (self.held <= self.most and (by_key <= share or by_key == own))
