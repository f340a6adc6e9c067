"""Records of what is counted of each key, in memory that the worker processes share, each with a lock that dies with
its holder.

Neighbours: ratelimit_store.py (whose record is where), windows.py (what the counts mean), ratelimit.py (takes and gives
back), docs/decisions/017-strict-windows.md (why parts) and 004-limits-in-shared-memory.md (why shared memory, and what
the lock costs).
"""

from __future__ import annotations

import fcntl
import mmap
import os
from struct import Struct

from gateway.limits import Limits
from gateway.slot import HEAD_WORDS
from gateway.windows import DAY_PART, PARTS, Rings

WORD_BYTES = 8
# A record: the digest of the key, whose last word is its tag; the newest part of a minute; what the parts hold
# together, of requests, tokens and a day's tokens; a word for each worker, the requests it has running; another for
# each, 1 where it keeps the slot; and then the parts themselves, in three rings.
TAG, AT, REQUESTS, TOKENS, DAY, OWN = 3, 4, 5, 6, 7, 8

# AT and the three sums, read in one piece.
_SUMS = Struct("4q")


class Records:
    """Records of 64-bit integers, zero at first. `workers` processes share them, each with one thread.

    With one worker there is no lock. Locks are POSIX record locks, which the kernel drops when their holder dies, at
    whatever instruction. Every word is written in one piece, and in such an order that a sum is never below what its
    parts hold: a worker that is killed between two words lends its key nothing, and whoever would be refused because of
    it is counted again (`rings`). A worker's own words are written by nobody else and need no lock.
    """

    def __init__(self, slots: int, workers: int, more_words: int = 0) -> None:
        """`more_words` are left free behind the records."""
        self.slots = slots
        self.workers = workers
        # Where in a record the rings are.
        self.requests_ring = OWN + 2 * workers
        self.tokens_ring = self.requests_ring + PARTS
        self.day_ring = self.tokens_ring + PARTS
        # Whole cache lines, so that two keys never share one. Only pages of keys that ask are ever there.
        self.record_words = (self.day_ring + PARTS + 7) // 8 * 8
        self.memory = mmap.mmap(-1, (self.base(slots) + more_words) * WORD_BYTES)
        self.words = memoryview(self.memory).cast("q")
        self._ring = Struct(f"{PARTS}q")
        self._nothing = memoryview(bytes(PARTS * WORD_BYTES)).cast("q")
        self._locks = os.memfd_create("upshift-limits") if workers > 1 else None

    def base(self, slot: int) -> int:
        """Where the slot's record begins in `words`."""
        return HEAD_WORDS + slot * self.record_words

    def lock(self, slot: int) -> None:
        """Keeps every other worker from the slot's record until `unlock`: microseconds, never across an await."""
        if self._locks is not None:
            fcntl.lockf(self._locks, fcntl.LOCK_EX, 1, slot)

    def unlock(self, slot: int) -> None:
        """Lets the next worker at the slot's record."""
        if self._locks is not None:
            fcntl.lockf(self._locks, fcntl.LOCK_UN, 1, slot)

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

    def clear(self, base: int, part: int) -> None:
        """What is not needed at `part` counts nothing from now on, whatever a worker that died has left in its sums."""
        self.advance(base, part)
        self.words[base + REQUESTS : base + OWN] = self._nothing[: OWN - REQUESTS]

    # -- to be asked without the lock, for a first look --------------------------------------------------------------

    def is_needed(self, base: int, part: int) -> bool:
        """Whether a request runs, a worker keeps the record, or something is counted in the windows of `part`."""
        at, requests, tokens, day = _SUMS.unpack_from(self.memory, (base + AT) * WORD_BYTES)
        # A sum is never below its parts.
        return bool(
            (requests and self._holds(base + self.requests_ring, at, part))
            or (tokens and self._holds(base + self.tokens_ring, at, part))
            or (day and self._holds(base + self.day_ring, at // DAY_PART, part // DAY_PART))
            or any(self.words[base + OWN : base + self.requests_ring])
        )

    def _holds(self, ring: int, at: int, part: int) -> bool:
        """Whether anything is in those places of `ring`, whose newest part is `at`, that count at `part`."""
        kept = PARTS - max(part - at, 0)
        if kept <= 0:
            return False
        newest = at % PARTS
        if self.words[ring + newest]:
            return True
        first = newest + 1 - kept
        if first >= 0:
            return self._has(ring + first, ring + newest)
        return self._has(ring, ring + newest) or self._has(ring + first + PARTS, ring + PARTS)

    def _has(self, start: int, end: int) -> bool:
        return self.words[start:end] != self._nothing[: end - start]

    def close(self) -> None:
        """Gives the memory back."""
        self.words.release()
        self.memory.close()
        if self._locks is not None:
            os.close(self._locks)
