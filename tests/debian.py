"""Programs of Debian's that tests run: downloaded and unpacked once, below the cache, and not installed."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

CACHE = Path(os.environ.get("UPSHIFT_CACHE") or Path.home() / ".cache" / "upshift") / "debian"


def program(package: str, path: str) -> Path:
    """The file `path` of `package`, such as "usr/bin/promtool"; where there is no apt, the program of that name."""
    name = Path(path).name
    if shutil.which("apt-get") is None:
        found = shutil.which(name)
        assert found is not None, f"neither apt-get nor {name} is here"
        return Path(found)
    CACHE.mkdir(parents=True, exist_ok=True)
    folder = CACHE / package
    with (CACHE / f"{package}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / path).exists():
            _unpack(package, folder)
    return folder / path


def _unpack(package: str, folder: Path) -> None:
    fresh = folder.with_suffix(".fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    # Without the lists that a fresh system does not have yet, apt knows no package.
    for command in (["apt-get", "-qq", "download", package], ["apt-get", "-qq", "update"]):
        done = subprocess.run(command, cwd=fresh, capture_output=True, text=True, timeout=600, check=False)
        if command[2] == "download" and done.returncode == 0:
            break
    else:
        subprocess.run(["apt-get", "-qq", "download", package], cwd=fresh, timeout=600, check=True)
    (archive,) = fresh.glob("*.deb")
    subprocess.run(["dpkg-deb", "-x", archive, fresh], check=True, timeout=300)
    archive.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
