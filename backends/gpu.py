"""The GPUs that an engine on this machine would see: NVIDIA's through NVML, AMD's from the kernel. Never imports torch.

Neighbours: nvml.py (asks NVML, in a process of its own), hardware.py (puts this beside cores and memory).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from backends.nvml import LIBRARY

# A driver that has to wake its GPUs up first takes some seconds for each; one that is lost never answers.
_NVML_SECONDS = 30

# What lists the devices that CUDA and HIP programs may see, by vendor; the first that is set counts.
_VISIBLE = {
    "nvidia": ("CUDA_VISIBLE_DEVICES",),
    "amd": ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"),
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU, or one MIG instance of one. `capability` is NVIDIA's compute capability such as "8.9", or AMD's
    architecture such as "gfx942". `total_bytes` is 0 where it has no memory of its own and shares the machine's."""

    vendor: Literal["nvidia", "amd"]
    name: str
    uuid: str
    total_bytes: int
    free_bytes: int
    capability: str


@dataclass(frozen=True, slots=True)
class Gpus:
    """One look. `runtime` is the newest CUDA that the driver runs, such as "CUDA 13.0"; empty where nobody says.
    `problem` is why GPUs that seem to be there cannot be asked, in one line; empty when all is well."""

    devices: tuple[Gpu, ...] = ()
    driver: str = ""
    runtime: str = ""
    problem: str = ""


def detect(root: Path, environ: Mapping[str, str] | None = None, library: str = LIBRARY) -> Gpus:
    """Looks now; raises nothing. NVIDIA's, and AMD's where there are none of those; without either driver it costs some
    look-ups of files. `root`, `environ` and `library` are there for tests."""
    environ = os.environ if environ is None else environ
    found = _nvidia(root, library) or _amd(root) or Gpus()
    return Gpus(visible(found.devices, environ), found.driver, found.runtime, found.problem)


def visible(gpus: tuple[Gpu, ...], environ: Mapping[str, str]) -> tuple[Gpu, ...]:
    """Those of `gpus` that a program with these variables sees, in its order. As CUDA reads them: indices or beginnings
    of UUIDs, up to the first that names nothing."""
    if not gpus:
        return ()
    for name in _VISIBLE[gpus[0].vendor]:
        if name in environ:
            return tuple(_named(gpus, environ[name].split(",")))
    return gpus


def _named(gpus: tuple[Gpu, ...], names: Iterable[str]) -> Iterator[Gpu]:
    for name in map(str.strip, names):
        if name.isdecimal() and int(name) < len(gpus):
            yield gpus[int(name)]
            continue
        matching = [gpu for gpu in gpus if name and not name.isdecimal() and gpu.uuid.startswith(name)]
        if len(matching) != 1:
            return
        yield matching[0]


def _nvidia(root: Path, library: str) -> Gpus | None:
    """None where no driver is loaded. /dev/dxg is the GPU of Windows, inside WSL."""
    if not any((root / place).exists() for place in ("proc/driver/nvidia/version", "dev/nvidiactl", "dev/dxg")):
        return None
    command = [sys.executable, "-P", "-m", "backends.nvml", library]
    try:
        asked = subprocess.run(command, capture_output=True, text=True, timeout=_NVML_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Gpus(problem=f"the NVIDIA driver did not answer within {_NVML_SECONDS} s")
    except OSError as error:
        return Gpus(problem=f"the NVIDIA driver could not be asked: {error.strerror}")
    if asked.returncode != 0:
        return Gpus(problem=f"asking the NVIDIA driver ended with exit code {asked.returncode}")
    try:
        return _from_report(json.loads(asked.stdout))
    except (ValueError, KeyError, TypeError):  # a library that writes to our output as well
        return Gpus(problem="asking the NVIDIA driver gave no answer that can be read")


def _from_report(report: dict[str, Any]) -> Gpus:
    problem = f"the NVIDIA driver does not answer: {report['problem']}" if report["problem"] else ""
    devices = tuple(Gpu(**device) for device in report["devices"])
    return Gpus(devices, report["driver"], report["runtime"], problem)


def _amd(root: Path) -> Gpus | None:
    """None where the kernel driver lists no GPU that computes."""
    nodes = root / "sys/class/kfd/kfd/topology/nodes"
    # Nodes in the order of their numbers, which is HIP's; the processors are among them, without an architecture.
    folders = sorted((path for path in nodes.glob("[0-9]*")), key=lambda path: int(path.name))
    devices = tuple(gpu for folder in folders if (gpu := _amd_gpu(root, folder)) is not None)
    return Gpus(devices, driver=_text(root / "sys/module/amdgpu/version")) if devices else None


def _amd_gpu(root: Path, node: Path) -> Gpu | None:
    properties = dict(line.split(" ", 1) for line in _text(node / "properties").splitlines() if " " in line)
    version = _number(properties.get("gfx_target_version", ""))
    if not version:
        return None
    device = root / "sys/class/drm" / f"renderD{properties.get('drm_render_minor', '')}" / "device"
    total_bytes, used_bytes = (_number(_text(device / f"mem_info_vram_{what}")) for what in ("total", "used"))
    # As 90402 for gfx942 and 90010 for gfx90a: decimal pairs, of which the last two are written as hexadecimal digits.
    capability = f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}"
    return Gpu(
        vendor="amd",
        name=_text(device / "product_name") or f"AMD {capability}",
        uuid=f"GPU-{_number(properties.get('unique_id', '')):x}",
        total_bytes=total_bytes,
        free_bytes=max(total_bytes - used_bytes, 0),
        capability=capability,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
