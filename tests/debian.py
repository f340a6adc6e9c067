"""Programs of Debian's that tests run, of this machine's release or of another one: fetched by apt, which checks them
against the archive's signatures, unpacked below the cache once per machine, and not installed."""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

CACHE = Path(os.environ.get("UPSHIFT_CACHE") or Path.home() / ".cache" / "upshift") / "debian"
# Another release is looked for where this machine's comes from; it is signed with keys of the same package.
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_FETCH_SECONDS = 600


class CannotFetch(Exception):
    """Why there is no such program here, in one line."""


def program(package: str, path: str) -> Path:
    """The file `path` of `package`, such as "usr/bin/promtool"; where there is no apt, the program of that name on the
    PATH. For programs that need no library beside them. Raises CannotFetch."""
    if shutil.which("apt-get") is None:
        found = shutil.which(Path(path).name)
        if found is None:
            raise CannotFetch(f"neither apt-get nor {Path(path).name} is here")
        return Path(found)
    return unpacked(package) / path


def unpacked(package: str, *beside: str, release: str = "") -> Path:
    """The folder with the files of `package`, and of those `beside` it, fetched where that was not done before;
    `release` is a code name such as "trixie", this machine's if empty. Raises CannotFetch."""
    own = release in ("", own_release())
    packages = (package, *beside)
    name = "+".join(packages if own else (release, *packages))
    folder = CACHE / name
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            _fetch(packages, folder, _HOST if own else _other(release))
    return folder


def command(folder: Path, path: str) -> list[str]:
    """How the program `path` of an unpacked folder is started: with the libraries that lie beside it, and by the loader
    of their C library if that is among them."""
    found = [file for place in ("lib", "usr/lib") for file in folder.glob(f"{place}/**/*.so.*")]
    libraries = ":".join(sorted({str(file.parent) for file in found}))
    loaders = [file for file in found if file.name.startswith("ld-linux") and not file.is_symlink()]
    if loaders:
        return [str(loaders[0]), "--library-path", libraries, str(folder / path)]
    return ["env", f"LD_LIBRARY_PATH={libraries}", str(folder / path)]


def own_release() -> str:
    """This machine's code name, empty where it has none."""
    return platform.freedesktop_os_release().get("VERSION_CODENAME", "")


# What apt-get is told beside the command, for each release it is asked for.
_HOST: tuple[str, ...] = ()


def _other(release: str) -> tuple[str, ...]:
    """A state of apt's own, with this one source, so that nothing of the machine's is touched. Raises CannotFetch."""
    state = CACHE / f"apt-{release}"
    for part in ("lists/partial", "archives/partial"):
        (state / part).mkdir(parents=True, exist_ok=True)
    (state / "status").touch()
    signed = f"[signed-by={_KEYRING}] " if _KEYRING.exists() else ""
    (state / "sources.list").write_text(f"deb {signed}{_archive()} {release} main\n")
    settings = {
        "Dir::Etc::SourceList": state / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "Acquire::Languages": "none",
    }
    return tuple(word for name, value in settings.items() for word in ("-o", f"{name}={value}"))


def _archive() -> str:
    """Where this machine's own packages come from."""
    listed = _apt(["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)"], CACHE)
    for line in listed.splitlines():
        address, *which = line.split()
        if which == [own_release(), "main"]:
            return address
    raise CannotFetch("apt has no Debian archive that other releases could come from")


def _fetch(packages: Sequence[str], folder: Path, options: Sequence[str]) -> None:
    fresh = folder.with_suffix(".fresh")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        _apt([*options, "download", *packages], fresh)
    except CannotFetch:
        # Without the lists that a fresh system does not have yet, or with old ones, apt finds no package.
        _apt([*options, "update"], fresh)
        _apt([*options, "download", *packages], fresh)
    for archive in fresh.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", archive, fresh], check=True, timeout=_FETCH_SECONDS)
        archive.unlink()
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def _apt(words: Sequence[str], folder: Path) -> str:
    """What `apt-get` says. Raises CannotFetch."""
    try:
        done = subprocess.run(
            ["apt-get", "-qq", *words], cwd=folder, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False
        )
    except FileNotFoundError:
        raise CannotFetch("there is no apt-get here") from None
    except subprocess.TimeoutExpired:
        raise CannotFetch(f"apt-get took more than {_FETCH_SECONDS} s") from None
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("E:")] or ["it said nothing"]
        raise CannotFetch(f"apt-get failed: {said[-1]}")
    return done.stdout
