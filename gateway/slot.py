"""Where the record of one key is in the LimitStore. Neighbours: ratelimit_store.py (moves it), auth.py and limits.py
(who has one)."""

from __future__ import annotations

import sys

# One word: how many slots have ever been taken. The rest keeps records on cache lines of their own.
HEAD_WORDS = 8


class Slot:
    """Of the key with that SHA-256. The record at `base` is its own as long as it has its `tag`; whoever finds another
    one there asks LimitStore.find, which moves the slot. Belongs to one process."""

    __slots__ = ("base", "digest", "number", "tag")

    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        # The last of its four words.
        self.tag = int.from_bytes(digest[24:32], sys.byteorder, signed=True)
        self.number = 0
        self.base = HEAD_WORDS
