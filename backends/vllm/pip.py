"""Runs an environment's own pip, and says how far it is.

Neighbour: install.py (what is installed).
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

# The first that can take up a broken download again, and has a progress that programs can read.
PIP = "pip==26.3"
_SAY_SECONDS = 5.0
_MIB = 1 << 20
# What of our own environment would lead another interpreter astray.
_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")


class InstallFailed(Exception):
    """The environment is not there. The message is one line: what happened, and what to do."""


class Pip:
    """pip of the environment whose interpreter is `python`; `say` gets lines for people, now and then."""

    def __init__(self, python: Path, say: Callable[[str], None]) -> None:
        self._python = python
        self._say = say
        self._log = python.parent.parent / "install.log"

    def renew(self) -> None:
        """The pip that a new environment has is as old as its Python."""
        self._run("pip", ["install", "--quiet", PIP])

    def install(self, what: str, arguments: Sequence[str]) -> None:
        """`pip install` with `arguments`. Raises InstallFailed."""
        self._run(what, ["install", "--progress-bar", "raw", "--resume-retries", "10", *arguments])

    def forget_halves(self) -> None:
        """An installation that was cut leaves packages that look installed and are not whole: pip is made to forget
        them, so that it installs them again."""
        for info in sorted(self._python.parent.parent.glob("lib/python3*/site-packages/*.dist-info")):
            if not _whole(info):
                self._say(f"{info.name.partition('-')[0]} is not whole: installing it again")
                for file in info.iterdir():
                    file.unlink()
                info.rmdir()

    def _run(self, what: str, arguments: Sequence[str]) -> None:
        command = [str(self._python), "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
        environment = {name: value for name, value in os.environ.items() if name not in _OURS}
        progress = Progress(what, self._say)
        with (
            self._log.open("a", encoding="utf-8") as log,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
            ) as process,
        ):
            for line in process.stdout or ():
                log.write("" if line.startswith("Progress ") else line)
                progress.read(line)
            code = process.wait()
        if code != 0:
            raise InstallFailed(f"{advice(progress.errors)} (all of it: {self._log})")


class Progress:
    """Reads pip's output line by line and tells `say` every few seconds what it is at. `errors` are pip's own words."""

    def __init__(self, what: str, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.errors: list[str] = []
        self._what = what
        self._say = say
        self._clock = clock
        self._started = clock()
        self._last = self._started
        self._packages = 0
        self._package = ""

    def read(self, line: str) -> None:
        """One line of pip's output."""
        words = line.split()
        if line.startswith("ERROR:") or "No space left" in line:
            self.errors.append(line.removeprefix("ERROR:").strip())
        elif line.startswith("Collecting ") and len(words) > 1:
            self._packages += 1
            self._package = re.split(r"[=<>!~\[;(]", words[1])[0]
            self._tell(f"package {self._packages}, {self._package}")
        elif line.startswith("Progress ") and len(words) == 4 and words[1].isdigit() and words[3].isdigit():
            got, all_of_it = int(words[1]), int(words[3])
            self._tell(f"package {self._packages}, {self._package}: {got // _MIB} of {all_of_it // _MIB} MiB")
        elif line.startswith("Installing collected packages"):
            self._tell("unpacking", now=True)

    def _tell(self, text: str, *, now: bool = False) -> None:
        seconds = self._clock()
        if now or seconds - self._last >= _SAY_SECONDS:
            self._last = seconds
            self._say(f"{self._what}: {text} ({seconds - self._started:.0f} s)")


def advice(errors: Sequence[str]) -> str:
    """What pip's complaints mean for the user, in one line."""
    text = " ".join(errors)
    if "No space left" in text:
        return "the disk is full; make room, or choose another place with --path, and run this again"
    if "No matching distribution" in text or "Could not find a version" in text:
        return f"a package is not to be had for this Python or this machine: {errors[-1]}"
    if "ConnectionError" in text or "timed out" in text or "Could not fetch" in text or not errors:
        return "pip could not finish; run this again, it goes on where it was. Is a package index reachable?"
    return f"pip failed: {errors[-1]}; run this again, it goes on where it was"


def _whole(info: Path) -> bool:
    """Whether every file that the package says it has is there in its size, except what Python compiles again."""
    try:
        with (info / "RECORD").open(encoding="utf-8", newline="") as record:
            rows = [(path, int(size)) for path, _, size in csv.reader(record) if size and not path.endswith(".pyc")]
    except (OSError, ValueError):
        return False
    return all(_has_size(info.parent / path, size_bytes) for path, size_bytes in rows)


def _has_size(path: Path, size_bytes: int) -> bool:
    try:
        return path.stat().st_size == size_bytes
    except OSError:
        return False
