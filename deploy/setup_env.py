"""Makes `.venv` with the `upshift` command in it: locked packages, our build of llama-cpp-python, the project itself.

    python3 deploy/setup_env.py

Needs Python >= 3.11 with venv, a C++ compiler and cmake; standard library only. The wheel of llama-cpp-python is kept
in ~/.cache/upshift/wheels (UPSHIFT_CACHE names another folder), so it is built once per machine. Running it again when
nothing changed takes well under a second.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "deploy" / "lock"
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".upshift-stamp"
CACHE = Path(os.environ.get("UPSHIFT_CACHE") or Path.home() / ".cache" / "upshift")
# Multimodal and llama.cpp's own tools are not used; what remains is libllama and ggml.
CMAKE_ARGS = f"-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama_cpp_INCLUDE={ROOT / 'deploy' / 'llama-lean.cmake'}"


def main() -> None:
    wanted = fingerprint()
    if STAMP.exists() and STAMP.read_text() == wanted and PYTHON.exists():
        return
    check_tools()
    STAMP.unlink(missing_ok=True)
    if not PYTHON.exists():
        say("creating .venv")
        run(
            [sys.executable, "-m", "venv", "--clear", str(VENV)],
            "python3 -m venv failed; on Debian: apt install python3-venv",
        )
    say("installing locked packages")
    pip("install", "--require-hashes", "-r", str(LOCK / "runtime.txt"), "-r", str(LOCK / "dev.txt"))
    wheel = kept_wheel() or build_wheel()
    pip("install", "--no-deps", "--no-index", "--force-reinstall", str(wheel))
    pip("install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT))
    STAMP.write_text(wanted)
    say("ready: .venv/bin/upshift")


def fingerprint() -> str:
    """What the environment is made from; a change of any of it makes it anew."""
    digest = hashlib.sha256(f"{sys.version} {wheel_key()} {ROOT}".encode())
    for path in (*sorted(LOCK.glob("*.txt")), ROOT / "pyproject.toml"):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def check_tools() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - this script is what an older Python gets to run
        sys.exit(
            f"upshift needs Python 3.11 or newer, not {platform.python_version()}. Try: make setup PYTHON=python3.12"
        )
    missing = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]
    if missing and kept_wheel() is None:
        sys.exit(f"missing {' and '.join(missing)}: needed once to build llama.cpp. On Debian: apt install cmake g++")


def wheel_folder() -> Path:
    return CACHE / "wheels" / wheel_key()


def wheel_key() -> str:
    """A wheel fits the source it was built from, the options, and the processor (-march=native)."""
    locked = (LOCK / "engine.txt").read_text() + (ROOT / "deploy" / "llama-lean.cmake").read_text()
    options = os.environ.get("CMAKE_ARGS", "")
    return hashlib.sha256(f"{locked} {options} {processor()} {platform.libc_ver()}".encode()).hexdigest()[:16]


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


def kept_wheel() -> Path | None:
    return next(iter(wheel_folder().glob("llama_cpp_python-*.whl")), None)


def build_wheel() -> Path:
    """Builds from the hash-locked source, without build isolation: the build's own tools are locked as well."""
    say("building llama-cpp-python, once on this machine: 2 to 6 minutes")
    folder = wheel_folder()
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "CMAKE_ARGS": f"{os.environ.get('CMAKE_ARGS', '')} {CMAKE_ARGS}",
        "CMAKE_BUILD_PARALLEL_LEVEL": os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL", str(os.cpu_count() or 1)),
        "PATH": f"{VENV / 'bin'}{os.pathsep}{os.environ['PATH']}",
    }
    command = [str(PYTHON), "-m", "pip", "wheel", "--verbose", "--no-deps", "--no-build-isolation", "--require-hashes"]
    command += ["--wheel-dir", str(folder), "-r", str(LOCK / "engine.txt")]
    log = folder / "build.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        follow(process, file)
    wheel = kept_wheel()
    if process.returncode != 0 or wheel is None:
        sys.exit(f"the build of llama-cpp-python failed; its log is {log}")
    return wheel


def follow(process: subprocess.Popen[str], log: TextIO) -> None:
    """Copies the build's output to its log and shows ninja's own counter."""
    started, shown = time.monotonic(), ""
    for line in process.stdout or ():
        log.write(line)
        step = re.match(r"\s*\[(\d+)/(\d+)\]", line)
        if step and step[0] != shown:
            shown = step[0]
            seconds = time.monotonic() - started
            progress(f"  compiling {step[1]} of {step[2]}, {seconds:.0f} s", last=step[1] == step[2])
    process.wait()


def progress(text: str, *, last: bool) -> None:
    """One line that rewrites itself on a terminal; every tenth part of it in a log."""
    if sys.stderr.isatty():
        print(f"\r{text}", end="\n" if last else "", file=sys.stderr, flush=True)
    elif last or "0 of" in text:
        print(text, file=sys.stderr, flush=True)


def pip(*arguments: str) -> None:
    command = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--quiet", "--no-input", *arguments]
    run(command, "pip failed; see its message above. Is a package index reachable?")


def run(command: list[str], advice: str) -> None:
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit(advice)


def say(text: str) -> None:
    print(f"setup: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
