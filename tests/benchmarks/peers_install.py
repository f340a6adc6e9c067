"""Fetches the contestants from the registries, each into a folder of its own below the cache, once per machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.benchmarks.bench_engine_build import CACHE
from tests.benchmarks.peers import Peer
from tests.debian import CannotFetch, program

_COMPLETE = ".complete"
_INSTALL_TIMEOUT_SECONDS = 1800
_SHOWN_SECONDS = 15


class CannotInstall(Exception):
    """Why a contestant cannot take part, in one line."""


def install(peer: Peer) -> Path:
    """Its folder, made complete where it is not; what a broken-off run left is used. Raises CannotInstall."""
    folder = CACHE / f"{peer.name}-{peer.version}"
    if peer.source is None:
        return folder
    mark, wanted = folder / _COMPLETE, json.dumps([*peer.source, dict(peer.overrides)])
    if mark.exists() and mark.read_text() == wanted:
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    installer, package = peer.source
    _INSTALLERS[installer](package, peer, folder)
    mark.write_text(wanted)
    return folder


def _pip(package: str, peer: Peer, folder: Path) -> None:
    if not (folder / "bin" / "pip").exists():
        _run([sys.executable, "-m", "venv", str(folder)], folder)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    _run([*pip, f"{package}=={peer.version}"], folder)


def _npm(package: str, peer: Peer, folder: Path) -> None:
    wanted = {"dependencies": {package: peer.version}, "overrides": dict(peer.overrides)}
    (folder / "package.json").write_text(json.dumps(wanted))
    (folder / "package-lock.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "node_modules", ignore_errors=True)
    _run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(folder)], folder)


def _deb(package: str, _peer: Peer, folder: Path) -> None:
    """The distribution's package, unpacked and not installed; where there is no apt, the program on the PATH."""
    _say(f"{folder.name}: {package} of this machine's Debian")
    try:
        found = program(package, f"usr/sbin/{package}")
    except CannotFetch as error:
        raise CannotInstall(str(error)) from None
    (folder / "usr" / "sbin").mkdir(parents=True, exist_ok=True)
    link = folder / "usr" / "sbin" / package
    link.unlink(missing_ok=True)
    link.symlink_to(found)


_INSTALLERS: dict[str, Callable[[str, Peer, Path], None]] = {"pip": _pip, "npm": _npm, "deb": _deb}


def _run(command: Sequence[str], folder: Path) -> None:
    """Runs in `folder` with its output in a file, saying now and then that it still runs."""
    log = folder / "install.log"
    _say(f"{folder.name}: {command[0]} … {command[-1]}")
    started = time.monotonic()
    try:
        with log.open("w") as output:
            process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, env=_environment())
            while _still_runs(process):
                seconds = time.monotonic() - started
                _say(f"{folder.name}: installing, {seconds:.0f} s")
                if seconds > _INSTALL_TIMEOUT_SECONDS:
                    process.kill()
                    process.wait()
                    raise CannotInstall(f"its installation took more than {_INSTALL_TIMEOUT_SECONDS} s")
    except FileNotFoundError:
        raise CannotInstall(f"there is no {command[0]} on this machine") from None
    if process.returncode != 0:
        raise CannotInstall(f"{Path(command[0]).name} failed: {_cause(log)} (all of it: {log})")


def _still_runs(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(_SHOWN_SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return False


def _environment() -> dict[str, str]:
    """Ours without what would point a child's Python at our packages."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def _cause(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()] or lines or ["it said nothing"]
    return errors[-1][:200]


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)
