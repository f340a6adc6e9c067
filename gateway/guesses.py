"""Slows whoever tries out keys: an address that sent too many wrong ones has to wait, whatever it sends next.

Only keys that nobody can guess pass meanwhile, ours with their 196 random bits: others behind the same address go on
working. Each worker counts for itself. Neighbours: entrance.py (asks), address.py (whose address).
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable

from gateway.errors import TooManyGuesses

# Wrong keys that one address may send at once, and per minute after that.
MOST = 20
# Addresses that are remembered; beyond that the oldest are forgiven.
MAX_ADDRESSES = 4096


class Guesses:
    """Wrong keys by address, or by /64 network for IPv6. `now` gives seconds of a clock that nobody sets."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        # What each still owes of its wrong keys, and when that was so.
        self._owed: dict[str, tuple[float, float]] = {}

    def __bool__(self) -> bool:
        """Whether any address sent a wrong key lately."""
        return bool(self._owed)

    def failed(self, address: str) -> None:
        """One more wrong key from `address`; nothing where that is empty."""
        place = _place(address)
        if not place:
            return
        owed = self._owes(place)
        self._owed.pop(place, None)
        while len(self._owed) >= MAX_ADDRESSES:
            del self._owed[next(iter(self._owed))]
        self._owed[place] = (owed + 1, self._now())

    def check(self, address: str) -> None:
        """Raises TooManyGuesses for an address that has to wait."""
        place = _place(address)
        owed = self._owes(place)
        if not owed:
            self._owed.pop(place, None)
        elif owed > MOST - 1:
            raise TooManyGuesses(
                "Too many wrong API keys came from this address.", retry_after_seconds=(owed - MOST + 1) * 60 / MOST
            )

    def _owes(self, place: str) -> float:
        owed, at = self._owed.get(place, (0.0, 0.0))
        return max(owed - (self._now() - at) * MOST / 60, 0.0)


def _place(address: str) -> str:
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return ""
    return str(ipaddress.ip_network((found, 64), strict=False)) if found.version == 6 else address
