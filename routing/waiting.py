"""Who waits, and whose turn it is: by priority, then one from each key in turn, then by arrival. Pure.

A key with a hundred waiting requests and one with a single one are served alternately. Neighbours: admission.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

Waiter = TypeVar("Waiter")


class FairQueue(Generic[Waiter]):
    """The order of everybody who waits. `add` and `remove` take time by the number of keys at most."""

    def __init__(self) -> None:
        # By priority, then by key in the order of their turns, then by arrival.
        self._classes: dict[int, OrderedDict[str, OrderedDict[Waiter, None]]] = {}
        # Whether anybody waits is asked for each request, and a dict knows that at once.
        self.places: dict[Waiter, tuple[int, str]] = {}

    def __len__(self) -> int:
        return len(self.places)

    def __contains__(self, waiter: Waiter) -> bool:
        return waiter in self.places

    def add(self, waiter: Waiter, priority: int, key: str) -> None:
        """`waiter` comes last of its key; a key that is new here comes last of its priority."""
        self._classes.setdefault(priority, OrderedDict()).setdefault(key, OrderedDict())[waiter] = None
        self.places[waiter] = priority, key

    def remove(self, waiter: Waiter, *, served: bool = False) -> None:
        """It waits no longer. After one that is `served` its key comes last of its priority."""
        priority, key = self.places.pop(waiter)
        keys = self._classes[priority]
        del keys[key][waiter]
        if not keys[key]:
            del keys[key]
            if not keys:
                del self._classes[priority]
        elif served:
            keys.move_to_end(key)

    def outranked(self, priority: int, key: str) -> Waiter | None:
        """Who has to go where there is room for nobody more and one of `key` comes: the latest one of the lowest
        priority, of the key with most of these. None where that is a higher priority, or the same with fewer than two
        more than `key` has: then they would only change places."""
        lowest = min(self._classes, default=priority)
        if lowest > priority or not self._classes:
            return None
        keys = self._classes[lowest]
        line = max(keys.values(), key=len)
        if lowest == priority and len(line) < len(keys.get(key, ())) + 2:
            return None
        return next(reversed(line))

    def __iter__(self) -> Iterator[Waiter]:
        """Everybody in the order of their turns, as they are now."""
        for priority in sorted(self._classes, reverse=True):
            lines = [list(line) for line in self._classes[priority].values()]
            for place in range(max(map(len, lines))):
                yield from (line[place] for line in lines if place < len(line))
