"""The counters of all keys in memory that the worker processes share, with one lock per key that dies with its holder.

Made before the workers are forked; never on disk, gone with the last process. Neighbours: ratelimit.py (what the
words of a record mean), docs/decisions/004-limits-in-shared-memory.md (why, and what the lock costs).
"""

from __future__ import annotations

import fcntl
import mmap
import os
from struct import Struct

WORD_BYTES = 8
# One word: how many slots are taken. The rest keeps records on cache lines of their own.
HEAD_WORDS = 8
# A record: the digest of the key; time of the last change; debts of requests and tokens; how many of the given-back
# tokens the debts know of; a day's debt of tokens; and then, a word for each worker, the requests it has running and
# the tokens it gave back.
DIGEST_WORDS, UPDATED, REQUESTS, TOKENS, SEEN, DAY, OWN = 4, 4, 5, 6, 7, 8, 9

# More keys than a file of 1 MiB can name, so that thousands can come and go before a restart.
DEFAULT_SLOTS = 16_384


class StoreFull(Exception):
    """More different keys than slots since the start. A restart forgets those that are gone."""


class LimitStore:
    """Records of 64-bit integers, one per key, zero at first. `workers` processes share them, each with one thread.

    With one worker there is no lock. Locks are POSIX record locks, which the kernel drops when their holder dies, at
    whatever instruction: every word is written in one piece, and a record between two words is a valid one. A worker's
    own words are written by nobody else and need no lock.
    """

    def __init__(self, slots: int = DEFAULT_SLOTS, workers: int = 1) -> None:
        self.slots = slots
        self.workers = workers
        # Whole cache lines, so that two keys never share one.
        self.record_words = (OWN + 2 * workers + 7) // 8 * 8
        self._memory = mmap.mmap(-1, (HEAD_WORDS + slots * self.record_words) * WORD_BYTES)
        self.words = memoryview(self._memory).cast("q")
        self._record = Struct(f"{OWN - UPDATED + 2 * workers}q")
        self._locks = os.memfd_create("upshift-limits") if workers > 1 else None
        self._known: dict[bytes, int] = {}

    def base(self, slot: int) -> int:
        """Where the slot's record begins in `words`."""
        return HEAD_WORDS + slot * self.record_words

    def record(self, base: int) -> tuple[int, ...]:
        """The words of the record at `base`, from UPDATED on, read in one piece."""
        return self._record.unpack_from(self._memory, (base + UPDATED) * WORD_BYTES)

    def slot_of(self, digest: bytes) -> int:
        """The slot of a key by its SHA-256, the same in every worker, taken when first asked for. Raises StoreFull."""
        slot = self._known.get(digest)
        if slot is not None:
            return slot
        self.lock(self.slots)
        try:
            return self._find_or_take(digest)
        finally:
            self.unlock(self.slots)

    def _find_or_take(self, digest: bytes) -> int:
        taken = self.words[0]
        for slot in range(len(self._known), taken):
            start = self.base(slot) * WORD_BYTES
            self._known[self._memory[start : start + len(digest)]] = slot
        if digest in self._known:
            return self._known[digest]
        if taken == self.slots:
            raise StoreFull(f"more than {self.slots} different API keys since the start; restart the gateway")
        start = self.base(taken) * WORD_BYTES
        self._memory[start : start + len(digest)] = digest
        self.words[0] = taken + 1
        self._known[digest] = taken
        return taken

    def lock(self, slot: int) -> None:
        """Keeps every other worker from the slot's record until `unlock`: microseconds, never across an await."""
        if self._locks is not None:
            fcntl.lockf(self._locks, fcntl.LOCK_EX, 1, slot)

    def unlock(self, slot: int) -> None:
        """Lets the next worker at the slot's record."""
        if self._locks is not None:
            fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, slot)

    def forget_worker(self, worker: int) -> None:
        """Ends what a dead worker had running, before its number is given to a new one. Needs no lock: the counters
        were written by that worker alone."""
        for slot in range(self.words[0]):
            self.words[self.base(slot) + OWN + worker] = 0

    def close(self) -> None:
        """Gives the memory back."""
        self.words.release()
        self._memory.close()
        if self._locks is not None:
            os.close(self._locks)
