"""The counters of all keys in memory that the worker processes share, with one lock per key that dies with its holder.

Made before the workers are forked; never on disk, gone with the last process. Neighbours: windows.py (what the counts
mean), ratelimit.py (takes and gives back), docs/decisions/017-strict-windows.md (why parts) and
004-limits-in-shared-memory.md (why shared memory, and what the lock costs).
"""

from __future__ import annotations

import fcntl
import mmap
import os
import time
from collections.abc import Callable, Iterable
from struct import Struct

from gateway.limits import Limits
from gateway.slot import HEAD_WORDS, Slot
from gateway.windows import DAY_PART, PART_NS, PARTS, Rings

WORD_BYTES = 8
DIGEST_BYTES = 32
# A record: the digest of the key, whose last word is its tag; the newest part of a minute; what the parts hold
# together, of requests, tokens and a day's tokens; a word for each worker, the requests it has running; another for
# each, 1 where it keeps the slot; and then the parts themselves, in three rings.
TAG, AT, REQUESTS, TOKENS, DAY, OWN = 3, 4, 5, 6, 7, 8

# More keys than a file of 1 MiB can name.
DEFAULT_SLOTS = 16_384


class StoreFull(Exception):
    """All slots are of keys that are configured, have a request running or something counted."""


class LimitStore:
    """Records of 64-bit integers, one per key, zero at first. `workers` processes share them, each with one thread.

    With one worker there is no lock. Locks are POSIX record locks, which the kernel drops when their holder dies, at
    whatever instruction. Every word is written in one piece, and in such an order that a sum is never below what its
    parts hold: a worker that is killed between two words lends its key nothing, and whoever would be refused because of
    it is counted again (`rings`). A worker's own words are written by nobody else and need no lock.

    A slot is a key's until all are taken and another key needs one; then one goes on to it of which nothing is counted
    and nothing runs, and which no worker keeps.
    """

    def __init__(
        self, slots: int = DEFAULT_SLOTS, workers: int = 1, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        """`clock_ns` is that of the RateLimiters."""
        self.slots = slots
        self.workers = workers
        self._clock_ns = clock_ns
        # Where in a record the rings are.
        self.requests_ring = OWN + 2 * workers
        self.tokens_ring = self.requests_ring + PARTS
        self.day_ring = self.tokens_ring + PARTS
        # Whole cache lines, so that two keys never share one. Only pages of keys that ask are ever there.
        self.record_words = (self.day_ring + PARTS + 7) // 8 * 8
        # Behind the records: which slots have been taken, the last `slots` times.
        self._takes = self.base(slots)
        self.memory = mmap.mmap(-1, (self._takes + slots) * WORD_BYTES)
        self.words = memoryview(self.memory).cast("q")
        self._ring = Struct(f"{PARTS}q")
        self._nothing = memoryview(bytes(PARTS * WORD_BYTES)).cast("q")
        self._locks = os.memfd_create("upshift-limits") if workers > 1 else None
        # What this process knows of who is where, after so many takes.
        self._seen = 0
        self._owners: dict[int, bytes] = {}
        self._known: dict[bytes, Slot] = {}
        self._kept: set[int] = set()
        # Where it looks first for a slot to take again, and the second in which there was none.
        self._hand = 0
        self._full_at = -1

    def base(self, slot: int) -> int:
        """Where the slot's record begins in `words`."""
        return HEAD_WORDS + slot * self.record_words

    # -- the record at `base`, to be used under its lock -------------------------------------------------------------

    def advance(self, base: int, part: int) -> tuple[int, int, int, int]:
        """Makes `part` the newest of the record, so that what has left the windows is not counted any more; a clock
        that goes back changes nothing. Returns the newest part, and what is counted: requests, tokens, a day's."""
        words = self.words
        at = words[base + AT]
        if part > at:
            self._forget(base + self.requests_ring, base + REQUESTS, at, part - at)
            self._forget(base + self.tokens_ring, base + TOKENS, at, part - at)
            day, day_at = part // DAY_PART, at // DAY_PART
            if day != day_at:
                self._forget(base + self.day_ring, base + DAY, day_at, day - day_at)
            # Last: whoever dies before has forgotten what was to be forgotten, and the next does the rest.
            words[base + AT] = at = part
        return at, words[base + REQUESTS], words[base + TOKENS], words[base + DAY]

    def _forget(self, ring: int, total: int, at: int, passed: int) -> None:
        """Empties the places in `ring` of the `passed` parts after `at`, which their forerunners still have."""
        words = self.words
        if not words[total]:
            return
        first = (at + 1) % PARTS
        if passed == 1:
            gone = words[ring + first]
            words[ring + first] = 0
        elif first + passed <= PARTS:
            gone = self._empty(ring + first, ring + first + passed)
        elif passed < PARTS:
            gone = self._empty(ring + first, ring + PARTS) + self._empty(ring, ring + first + passed - PARTS)
        else:
            gone = words[total]
            words[ring : ring + PARTS] = self._nothing
        if gone:
            words[total] -= gone

    def _empty(self, start: int, end: int) -> int:
        """Returns what was in those places."""
        gone = sum(self.words[start:end])
        if gone:
            self.words[start:end] = self._nothing[: end - start]
        return gone

    def charge(self, base: int, limits: Limits, part: int, tokens: int) -> None:
        """Counts so many tokens more at `part`, whatever the limits are. The sum first: it is never below its parts."""
        words = self.words
        part, *_ = self.advance(base, part)
        if limits.counts_minute:
            words[base + TOKENS] += tokens
            words[base + self.tokens_ring + part % PARTS] += tokens
        if limits.counts_day:
            words[base + DAY] += tokens
            words[base + self.day_ring + part // DAY_PART % PARTS] += tokens

    def give_back(self, base: int, limits: Limits, part: int, tokens: int, requests: int) -> None:
        """Adds `tokens` and `requests`, which are not above 0, to what was counted at `part`, where that still counts.
        The sum last: it is never below its parts."""
        words = self.words
        at = words[base + AT]
        if at - part < PARTS:
            place = base + part % PARTS
            if tokens and limits.counts_minute:
                words[place + self.tokens_ring] += tokens
                words[base + TOKENS] += tokens
            if requests and limits.counts_requests:
                words[place + self.requests_ring] += requests
                words[base + REQUESTS] += requests
        if limits.counts_day and at // DAY_PART - part // DAY_PART < PARTS:
            words[base + self.day_ring + part // DAY_PART % PARTS] += tokens
            words[base + DAY] += tokens

    def running(self, base: int) -> int:
        """How many requests run at all workers."""
        return sum(self.words[base + OWN : base + OWN + self.workers])

    def rings(self, base: int, limits: Limits) -> Rings:
        """The parts of what is limited; their sums in the record are put right by them."""
        at = self.words[base + AT]
        return Rings(
            at,
            self._counted(base + self.requests_ring, base + REQUESTS, at) if limits.counts_requests else (),
            self._counted(base + self.tokens_ring, base + TOKENS, at) if limits.counts_minute else (),
            self._counted(base + self.day_ring, base + DAY, at // DAY_PART) if limits.counts_day else (),
        )

    def _counted(self, ring: int, total: int, at: int) -> tuple[int, ...]:
        parts = self._ring.unpack_from(self.memory, ring * WORD_BYTES)
        self.words[total] = sum(parts)
        oldest = (at + 1) % PARTS
        return parts[oldest:] + parts[:oldest]

    # -- whose record is where ---------------------------------------------------------------------------------------

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
            number = self._take(slot.digest) if known is None else known.number
        finally:
            self.unlock(self.slots)
        slot.number, slot.base = number, self.base(number)
        self._known[slot.digest] = slot

    def _catch_up(self) -> None:
        """Learns who took what since the last time."""
        takes = self.words[0]
        missed = range(self._seen, takes)
        numbers = [self.words[self._takes + take % self.slots] for take in missed[-self.slots :]]
        if len(missed) > self.slots:
            numbers = list(range(self.slots))
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
        """The number of a slot that nobody has had, or that nobody needs."""
        takes = self.words[0]
        number = takes
        if takes < self.slots:
            self.lock(number)
        else:
            number = self._unneeded()
        start = self.base(number) * WORD_BYTES
        self.memory[start : start + len(digest)] = digest
        self.unlock(number)
        self.words[self._takes + takes % self.slots] = number
        self.words[0] = takes + 1
        self._catch_up()
        return number

    def _unneeded(self) -> int:
        """One that was taken and is not needed any more, locked if found. Raises StoreFull."""
        part = self._clock_ns() // PART_NS
        for step in range(self.slots if part != self._full_at else 0):
            number = (self._hand + step) % self.slots
            self.lock(number)
            if self._is_unneeded(self.base(number), part):
                self._hand = number + 1
                return number
            self.unlock(number)
        self._full_at = part
        raise StoreFull(f"more than {self.slots} different API keys and subjects at the same time")

    def _is_unneeded(self, base: int, part: int) -> bool:
        if any(self.words[base + OWN : base + self.requests_ring]):
            return False
        return not any(self.advance(base, part)[1:])

    def keep(self, worker: int, slots: Iterable[Slot]) -> None:
        """From now on none but these is kept by `worker`: given to no other key, also when nothing is counted."""
        kept = {slot.number for slot in slots}
        for number in kept ^ self._kept:
            self.words[self.base(number) + OWN + self.workers + worker] = int(number in kept)
        self._kept = kept

    def lock(self, slot: int) -> None:
        """Keeps every other worker from the slot's record until `unlock`: microseconds, never across an await."""
        if self._locks is not None:
            fcntl.lockf(self._locks, fcntl.LOCK_EX, 1, slot)

    def unlock(self, slot: int) -> None:
        """Lets the next worker at the slot's record."""
        if self._locks is not None:
            fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, slot)

    def forget_worker(self, worker: int) -> None:
        """Ends what a dead worker had running and kept, before its number is given to a new one. Needs no lock: the
        words were written by that worker alone."""
        for slot in range(min(self.words[0], self.slots)):
            own = self.base(slot) + OWN + worker
            self.words[own] = self.words[own + self.workers] = 0

    def close(self) -> None:
        """Gives the memory back."""
        self.words.release()
        self.memory.close()
        if self._locks is not None:
            os.close(self._locks)
