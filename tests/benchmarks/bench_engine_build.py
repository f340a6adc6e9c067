"""Makes the two peers, once per machine: llama-server from the source our own wheel is built from, and an environment
for `python -m llama_cpp.server` around the very library that our engine loads. Both stay in the cache folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("UPSHIFT_CACHE") or Path.home() / ".cache" / "upshift") / "bench"
_ENGINE_LOCK = ROOT / "deploy" / "lock" / "engine.txt"
# As llama-cpp-python's own build: shared, Release, no curl, GGML's defaults (-march=native). No web interface is built
# and none is fetched.
_CMAKE_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON",
    "-DLLAMA_CURL=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DLLAMA_BUILD_COMMON=ON",
    "-DLLAMA_BUILD_TOOLS=ON",
    "-DLLAMA_BUILD_SERVER=ON",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
)
# llama-cpp-python's extra "server" and what llama_cpp itself imports.
_PEER_REQUIREMENTS = (
    "diskcache==5.6.3",
    "fastapi==0.165.0",
    "jinja2==3.1.6",
    "numpy==2.4.6",
    "pydantic-settings==2.16.3",
    "pyyaml==6.0.3",
    "sse-starlette==3.7.0",
    "starlette==1.10.0",
    "starlette-context==0.3.6",
    "typing-extensions==4.16.0",
    "uvicorn==0.54.0",
)


def llama_server() -> Path:
    """The binary; its libraries lie beside it. Exits with the log's name where the build fails."""
    options, folder = _llama_server_options(), _llama_server_folder()
    binary = folder / "llama-server"
    if binary.exists():
        return binary
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _say("building llama-server, once on this machine: 5 to 15 minutes")
    source = _unpack_source(partial)
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    build = partial / "build"
    log = CACHE / "llama-server-build.log"
    commands = (
        ["cmake", "-S", str(source), "-B", str(build), "-G", "Ninja", *options],
        ["cmake", "--build", str(build), "--target", "llama-server", "--parallel", str(os.cpu_count() or 1)],
    )
    with log.open("w") as file:
        for command in commands:
            _run_shown(command, file, {**os.environ, "PATH": tools}, log)
    (build / "bin").rename(folder)
    shutil.rmtree(partial)
    return binary


def kept_llama_server() -> Path | None:
    """The binary where it has been built before, or the one that UPSHIFT_TEST_LLAMA_SERVER names."""
    named = os.environ.get("UPSHIFT_TEST_LLAMA_SERVER")
    binary = Path(named) if named else _llama_server_folder() / "llama-server"
    return binary if binary.exists() else None


def _llama_server_options() -> list[str]:
    return [*_CMAKE_OPTIONS, *shlex.split(os.environ.get("CMAKE_ARGS", ""))]


def _llama_server_folder() -> Path:
    return CACHE / f"llama-server-{_key(_ENGINE_LOCK.read_text(), *_llama_server_options(), _processor())}"


def _unpack_source(folder: Path) -> Path:
    """llama.cpp as it lies in the hash-locked source package of llama-cpp-python."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    command += [
        "--no-deps",
        "--no-binary",
        ":all:",
        "--no-build-isolation",
        "--dest",
        str(folder),
        "-r",
        str(_ENGINE_LOCK),
    ]
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit("bench-engine: pip could not download the source of llama-cpp-python")
    (package,) = folder.glob("*.tar.gz")
    shutil.unpack_archive(package, folder)  # its hash is locked; Debian's 3.11.2 has no filters yet
    (source,) = folder.glob("*/vendor/llama.cpp")
    return source


def llama_cpp_server() -> Path:
    """A Python that has llama_cpp.server's dependencies and, as a link, the llama_cpp installed here."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        sys.exit("bench-engine: llama_cpp is not installed here; run `make setup`")
    package = Path(spec.origin).parent
    folder = CACHE / f"llama_cpp.server-{_key(sys.version, str(package), *_PEER_REQUIREMENTS)}"
    python = folder / "bin" / "python"
    link = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages" / "llama_cpp"
    if link.is_symlink():
        return python
    _say("making the environment of llama_cpp.server")
    shutil.rmtree(folder, ignore_errors=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install", *_PEER_REQUIREMENTS]
    for command in ([sys.executable, "-m", "venv", str(folder)], pip):
        if subprocess.run(command, check=False).returncode != 0:
            sys.exit(f"bench-engine: failed: {shlex.join(command)}")
    link.symlink_to(package)  # last: it marks the environment as complete
    return python


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _processor() -> str:
    """What -march=native depends on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


def _run_shown(command: list[str], log_file: object, environment: dict[str, str], log: Path) -> None:
    """Runs with ninja's counter shown: in place on a terminal, every tenth step elsewhere."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    started = time.monotonic()
    assert process.stdout is not None
    for line in process.stdout:
        log_file.write(line)  # type: ignore[attr-defined]
        step = re.match(r"\[(\d+)/(\d+)\]", line)
        if step and (sys.stderr.isatty() or int(step[1]) % 10 == 0 or step[1] == step[2]):
            end = "\r" if sys.stderr.isatty() and step[1] != step[2] else "\n"
            seconds = time.monotonic() - started
            print(f"  compiling {step[1]} of {step[2]}, {seconds:.0f} s", end=end, file=sys.stderr, flush=True)
    if process.wait() != 0:
        sys.exit(f"bench-engine: the build of llama-server failed; its log is {log}")


def _say(text: str) -> None:
    print(f"bench-engine: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    print(llama_server())
