"""Whose request it is, by address: the connection's other end, or whom a trusted proxy names.

Neighbours: call.py (`peer`), entrance.py (asks), crowd.py (connections per address).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence

_HEADER = b"x-forwarded-for"


class ClientAddress:
    """`trusted` are addresses and networks of reverse proxies. From anybody else X-Forwarded-For means nothing: whoever
    could choose the address would have as many as there are limits."""

    def __init__(self, trusted: Iterable[str]) -> None:
        self._trusted = [ipaddress.ip_network(network) for network in trusted]

    def of(self, peer: str, headers: Sequence[tuple[bytes, bytes]]) -> str:
        """The address of the client of a connection from `peer`, empty for a Unix socket. Each proxy adds at the right
        whom it was called by, so the rightmost address that no trusted proxy has is the last one that is vouched for.
        """
        if not self._trusted or not self.trusts(peer):
            return peer
        client = peer
        named = b",".join(value for name, value in headers if name == _HEADER)
        for entry in reversed(named.split(b",")):
            address = _address(entry)
            if address is None:
                return client
            client = address
            if not self.trusts(client):
                return client
        return client

    def trusts(self, text: str) -> bool:
        """Whether a trusted proxy has this address."""
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            return False
        return any(address in network for network in self._trusted)


def _address(entry: bytes) -> str | None:
    """The address in one entry, as some proxies write it with a port or brackets; None for anything else."""
    text = entry.strip().decode("ascii", "replace")
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)
