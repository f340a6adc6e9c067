"""Shared memory that killed processes leave behind: ours is removed, nobody else's is."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends.segments import Segments, remove

# Maps each file and says so; ends with its stdin.
MAP = """
import mmap, sys
held = []
for path in sys.argv[1:]:
    with open(path, "r+b") as file:
        held.append(mmap.mmap(file.fileno(), 4096))
print("mapped", flush=True)
sys.stdin.read()
"""

Process = subprocess.Popen[str]


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """Stands for /dev/shm, with one file that was there before."""
    (tmp_path / "shm").mkdir()
    segment(tmp_path / "shm" / "before")
    return tmp_path / "shm"


@pytest.fixture
def segments(tmp_path: Path, shared: Path) -> Segments:
    return Segments(tmp_path / "notes", shared)


@pytest.fixture
def started() -> Iterator[list[Process]]:
    processes: list[Process] = []
    yield processes
    for process in processes:
        process.kill()
        process.communicate(timeout=30)


def segment(path: Path) -> Path:
    path.write_bytes(bytes(4096))
    return path


def mapping(started: list[Process], *paths: Path, own_group: bool = False) -> int:
    """Pid of a process that has mapped these files."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", MAP, *map(str, paths)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0 if own_group else None,
    )
    started.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "mapped\n"
    return process.pid


def end(started: list[Process]) -> None:
    started[0].kill()
    started[0].wait(timeout=30)


def names(shared: Path) -> set[str]:
    return {path.name for path in shared.iterdir()}


def test_what_is_new_and_mapped_by_ours_is_removed(
    shared: Path, segments: Segments, started: list[Process], tmp_path: Path
) -> None:
    ours, theirs = segment(shared / "psm_1"), segment(shared / "psm_2")
    pid = mapping(started, ours, shared / "before")
    segments.look(lambda: [pid])
    ours.rename(shared / "sem.mp-1")  # as glibc does with a semaphore
    later = segment(shared / "psm_3")
    end(started)
    remove(tmp_path / "notes", folder=shared)
    assert names(shared) == {"before", theirs.name, later.name}
    assert not (tmp_path / "notes").exists()


def test_what_somebody_else_has_mapped_stays(
    shared: Path, segments: Segments, started: list[Process], tmp_path: Path
) -> None:
    ours, both = segment(shared / "psm_1"), segment(shared / "psm_2")
    pid = mapping(started, ours, both)
    mapping(started, both)
    segments.look(lambda: [pid])
    end(started)
    remove(tmp_path / "notes", folder=shared)
    assert names(shared) == {"before", "psm_2"}


def test_processes_that_are_being_killed_keep_nothing(
    shared: Path, segments: Segments, started: list[Process], tmp_path: Path
) -> None:
    pid = mapping(started, segment(shared / "psm_1"), own_group=True)
    segments.look(lambda: [pid])
    remove(tmp_path / "notes", group=pid, folder=shared)
    assert names(shared) == {"before"}


def test_somebody_elses_are_soon_not_looked_at_any_more(
    shared: Path, segments: Segments, started: list[Process]
) -> None:
    asked = 0

    def nobody() -> list[int]:
        nonlocal asked
        asked += 1
        return []

    segments.look(nobody)
    assert asked == 0, "nothing is new"
    segment(shared / "psm_1")
    for _ in range(20):
        segments.look(nobody)
    assert 1 < asked < 5


def test_without_notes_or_with_nonsense_in_them_nothing_is_removed(shared: Path, tmp_path: Path) -> None:
    remove(tmp_path / "notes", folder=shared)
    (tmp_path / "notes").write_text("1 x")
    remove(tmp_path / "notes", folder=shared)
    assert names(shared) == {"before"}


def test_a_machine_without_shared_memory_has_none(tmp_path: Path) -> None:
    segments = Segments(tmp_path / "notes", tmp_path / "none")
    segments.look(lambda: [os.getpid()])
    (tmp_path / "notes").write_text("1\n")
    remove(tmp_path / "notes", folder=tmp_path / "none")
    assert not (tmp_path / "notes").exists()
