"""How many connections there are from each address, so that one client cannot take the places of all.

Neighbours: listener.py and tls_link.py (come and go), entrance.py (whose addresses are not one client's).
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Callable


class Crowd:
    """Counts connections by address, or by /64 network for IPv6, which one client usually has to itself. A proxy's
    connections are many clients', so those whose address `is_proxy` are not counted; nor are Unix sockets."""

    def __init__(self, most_per_address: int | None = None, is_proxy: Callable[[str], bool] = lambda _: False) -> None:
        self._most = most_per_address
        self._is_proxy = is_proxy
        self._places: dict[object, str] = {}
        self._counts: dict[str, int] = {}

    def admit(self, connection: object, transport: asyncio.BaseTransport) -> bool:
        """Whether there is room for one more from its address. Asked again for the same connection, the answer is
        yes. Every connection that was admitted has to `leave`."""
        if self._most is None or connection in self._places:
            return True
        place = self._place(transport)
        if not place:
            return True
        count = self._counts.get(place, 0)
        if count >= self._most:
            return False
        self._places[connection] = place
        self._counts[place] = count + 1
        return True

    def leave(self, connection: object) -> None:
        """Gives its place back. Idempotent."""
        place = self._places.pop(connection, None)
        if place is not None:
            self._counts[place] -= 1
            if not self._counts[place]:
                del self._counts[place]

    def _place(self, transport: asyncio.BaseTransport) -> str:
        """Empty for whoever is not counted."""
        peer = transport.get_extra_info("peername")
        if not isinstance(peer, tuple) or self._is_proxy(peer[0]):
            return ""
        address = ipaddress.ip_address(peer[0].partition("%")[0])
        return str(ipaddress.ip_network((address, 64), strict=False) if address.version == 6 else address)
