"""Programs of Debian's that tests run: downloaded and unpacked once, below the cache, and not installed."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

CACHE = Path(os.environ.get("UPSHIFT_CACHE") or Path.home() / ".cache" / "upshift") / "debian"


def program(package: str, path: str) -> Path:
    """The file `path` of `package`, such as "usr/bin/promtool"; where there is no apt, the program of that name."""
    name = Path(path).name
    if shutil.which("apt-get") is None:
        found = shutil.which(name)
        assert found is not None, f"neither apt-get nor {name} is here"
        return Path(found)
    return unpacked(package) / path


def unpacked(package: str, *beside: str) -> Path:
    """The folder with the files of `package`, and of those `beside` it."""
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = CACHE / package
    with (CACHE / f"{package}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _unpack([package, *beside], folder)
    return folder


def _unpack(packages: Sequence[str], folder: Path) -> None:
    fresh = folder.with_suffix(".fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    # Without the lists that a fresh system does not have yet, apt knows no package.
    for command in (["apt-get", "-qq", "download", *packages], ["apt-get", "-qq", "update"]):
        done = subprocess.run(command, cwd=fresh, capture_output=True, text=True, timeout=600, check=False)
        if command[2] == "download" and done.returncode == 0:
            break
    else:
        subprocess.run(["apt-get", "-qq", "download", *packages], cwd=fresh, timeout=600, check=True)
    for archive in fresh.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", archive, fresh], check=True, timeout=300)
        archive.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
