"""Programs from PyPI that tests run, each in an environment of its own below the cache, made once per machine of what
its lock in deploy/lock/tools names."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

_LOCKS = Path(__file__).resolve().parents[1] / "deploy" / "lock" / "tools"
_CACHE = Path(os.environ.get("UPSHIFT_CACHE") or Path.home() / ".cache" / "upshift") / "tools"


def tool(name: str) -> Path:
    """The program `name` of the package `name`."""
    lock = _LOCKS / f"{name}.txt"
    folder = _CACHE / f"{name}-{hashlib.sha256(lock.read_bytes()).hexdigest()[:12]}"
    complete = folder / ".complete"
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / f"{name}.lock").open("w") as alone:
        fcntl.flock(alone, fcntl.LOCK_EX)
        if not complete.exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=300)
            pip = [str(folder / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
            subprocess.run([*pip, "--require-hashes", "-r", str(lock)], check=True, timeout=900)
            complete.touch()
    return folder / "bin" / name
