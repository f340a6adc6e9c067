"""Whose record is where: the counters of all keys in memory that the worker processes share.

Made before the workers are forked; never on disk, gone with the last process. Neighbours: ratelimit_records.py (the
records), slot.py (a key's place), ratelimit.py (takes and gives back), docs/decisions/004-limits-in-shared-memory.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from struct import Struct

from gateway.ratelimit_records import OWN, TAG, WORD_BYTES, Records
from gateway.slot import Slot
from gateway.windows import PART_NS

DIGEST_BYTES = 32
_DIGEST = Struct("4q")

# More keys than a file of 1 MiB can name.
DEFAULT_SLOTS = 16_384


class StoreFull(Exception):
    """All slots are of keys that are configured, have a request running or something counted."""


class LimitStore(Records):
    """One record per key.

    A slot is a key's until all are taken and another key needs one; then one goes on to it of which nothing is counted
    and nothing runs, and which no worker keeps.
    """

    def __init__(
        self, slots: int = DEFAULT_SLOTS, workers: int = 1, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        """`clock_ns` is that of the RateLimiters."""
        super().__init__(slots, workers, more_words=slots)
        self._clock_ns = clock_ns
        # Behind the records: which slots have been taken, the last `slots` times.
        self._takes = self.base(slots)
        # What this process knows of who is where, after so many takes.
        self._seen = 0
        self._owners: dict[int, bytes] = {}
        self._known: dict[bytes, Slot] = {}
        self._kept: set[int] = set()
        # Where it looks first for a slot to take again, and the second in which there was none.
        self._hand = 0
        self._full_at = -1

    def slot_of(self, digest: bytes) -> Slot:
        """The slot of a key by its SHA-256, the same record in every worker, taken when first asked for, and again when
        it was given to another key meanwhile. Raises StoreFull."""
        slot = self._known.get(digest)
        if slot is None or self.words[slot.base + TAG] != slot.tag:
            slot = slot or Slot(digest)
            self.find(slot)
        return slot

    def find(self, slot: Slot) -> None:
        """Moves `slot` to where its key's record is now. Not to be called with a lock held. Raises StoreFull."""
        self.lock(self.slots)
        try:
            self._catch_up()
            known = self._known.get(slot.digest)
            # Where the record says otherwise, whoever asks would be sent to it again and again.
            if known is None or self.words[self.base(known.number) + TAG] != slot.tag:
                number = self._take(slot.digest)
            else:
                number = known.number
        finally:
            self.unlock(self.slots)
        slot.number, slot.base = number, self.base(number)
        self._known[slot.digest] = slot

    def _catch_up(self) -> None:
        """Learns who took what since the last time."""
        takes = self.words[0]
        numbers: Iterable[int] = range(self.slots)
        # Of as many takes as there are slots the oldest may be overwritten by one that was never counted.
        if takes - self._seen < self.slots:
            numbers = [self.words[self._takes + take % self.slots] for take in range(self._seen, takes)]
        for number in numbers:
            before = self._known.get(self._owners.get(number, b""))
            if before is not None and before.number == number:
                del self._known[before.digest]
            start = self.base(number) * WORD_BYTES
            digest = self.memory[start : start + DIGEST_BYTES]
            self._owners[number] = digest
            self._known[digest] = slot = self._known.get(digest) or Slot(digest)
            slot.number, slot.base = number, self.base(number)
        self._seen = takes

    def _take(self, digest: bytes) -> int:
        """The number of a slot that nobody has had, or that nobody needs.

        Who dies here, between whatever words, leaves a slot whose owner everybody looks up anew: the one before, nobody
        (half a digest is no key's, and without its tag nobody counts there), or the one that it was taken for.
        """
        words = self.words
        takes = number = words[0]
        if takes < self.slots:
            self.lock(number)
        else:
            number = self._unneeded()
        words[self._takes + takes % self.slots] = number
        words[0] = takes + 1
        *others, tag = _DIGEST.unpack(digest)
        base = self.base(number)
        words[base + TAG] = 0
        for place, word in enumerate(others, base):
            words[place] = word
        words[base + TAG] = tag
        self.unlock(number)
        self._catch_up()
        return number

    def _unneeded(self) -> int:
        """One that was taken and is not needed any more, empty, and locked if found. Raises StoreFull."""
        part = self._clock_ns() // PART_NS
        for step in range(self.slots if part != self._full_at else 0):
            number = (self._hand + step) % self.slots
            base = self.base(number)
            # Most are needed, and a look costs less than the lock.
            if self.is_needed(base, part):
                continue
            self.lock(number)
            if not self.is_needed(base, part):
                self.clear(base, part)
                self._hand = number + 1
                return number
            self.unlock(number)
        self._full_at = part
        raise StoreFull(f"more than {self.slots} different API keys and subjects at the same time")

    def keep(self, worker: int, slots: Iterable[Slot]) -> None:
        """From now on none but these is kept by `worker`: given to no other key, also when nothing is counted."""
        kept = {slot.number for slot in slots}
        for number in kept ^ self._kept:
            self.words[self.base(number) + OWN + self.workers + worker] = int(number in kept)
        self._kept = kept

    def forget_worker(self, worker: int) -> None:
        """Ends what a dead worker had running and kept, before its number is given to a new one. Needs no lock: the
        words were written by that worker alone."""
        for slot in range(min(self.words[0], self.slots)):
            own = self.base(slot) + OWN + worker
            self.words[own] = self.words[own + self.workers] = 0
