"""Shared memory that the processes of one engine have made, and its removal when they were killed.

vLLM's processes talk through files in /dev/shm with random names. Whoever made one removes it when it ends in order;
of those that are killed it stays, with up to 250 MB in it, until the machine is started again. Ours is what came after
we began to look and what a process of ours has mapped. Standard library only.
Neighbours: vllm/guard.py (looks and removes), process.py (removes where the guard was killed).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

FOLDER = Path("/dev/shm")  # noqa: S108 - where POSIX shared memory is
NOTES = "segments"

# A process maps what it makes at once: what none of ours has mapped by then is somebody else's.
_LOOKS = 3


class Segments:
    """The shared memory of one engine. The inodes are written down in the file `notes`, one a line, for `remove` in
    this process or another: names are no use, for a semaphore gets its own after it was mapped."""

    def __init__(self, notes: Path, folder: Path = FOLDER) -> None:
        self._notes = notes
        self._folder = folder
        # How often each inode will still be looked at.
        self._looks = dict.fromkeys(_inodes(folder), 0)

    def look(self, processes: Callable[[], Iterable[int]]) -> None:
        """Notes what is new and mapped by one of `processes`, who are asked for only where something is new: otherwise
        it costs a listing of the folder. Raises OSError when it cannot be written down."""
        self._looks = {inode: self._looks.get(inode, _LOOKS) for inode in _inodes(self._folder)}
        new = {inode for inode, looks in self._looks.items() if looks}
        if not new:
            return
        found = new.intersection(_mapped(processes(), self._folder))
        for inode in new:
            self._looks[inode] = 0 if inode in found else self._looks[inode] - 1
        if found:
            with self._notes.open("a") as file:
                file.writelines(f"{inode}\n" for inode in found)


def remove(notes: Path, group: int | None = None, folder: Path = FOLDER) -> None:
    """Removes what is written down in `notes`, and that file; does nothing where there is none. What somebody else has
    mapped stays: anybody but the processes of `group`, which have been killed and may not be gone yet."""
    try:
        noted = set(map(int, notes.read_text().split()))
    except (FileNotFoundError, ValueError):
        return
    left = [entry for entry in _entries(folder) if entry.inode() in noted]
    shared = set(_mapped(_others(group), folder)) if left else set()
    for entry in left:
        with suppress(OSError):  # it has gone, or belongs to another user
            if entry.inode() not in shared:
                os.unlink(entry)
    notes.unlink(missing_ok=True)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if entry.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def _inodes(folder: Path) -> set[int]:
    return {entry.inode() for entry in _entries(folder)}


def _mapped(pids: Iterable[int], folder: Path) -> Iterator[int]:
    """Inodes of the files in `folder` that these processes have mapped."""
    place = b" " + os.fsencode(folder) + b"/"
    for pid in pids:
        with suppress(OSError):  # it has ended, or is not ours to look at
            lines = Path(f"/proc/{pid}/maps").read_bytes().splitlines()
            yield from (int(line.split(maxsplit=5)[4]) for line in lines if place in line)


def _others(group: int | None) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        with suppress(ValueError, ProcessLookupError):
            pid = int(entry.name)
            if group is None or os.getpgid(pid) != group:
                yield pid
