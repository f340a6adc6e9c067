"""What this machine offers an engine: cores, memory, instruction sets, GPUs. Reads /proc and /sys.

A container's limits count as the machine's size: an engine sized for the host would be throttled or killed. Both cgroup
versions are read, and every group above ours, for the tightest one rules. Neighbour: gpu.py.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from backends import gpu
from backends.gpu import Gpus

_ROOT = Path("/")
_NO_GPUS = Gpus()

# Kernel flag -> the name people know, in the order shown. These are what llama.cpp has code paths for.
_INSTRUCTION_SETS = {
    "sse4_2": "SSE4.2",
    "avx": "AVX",
    "f16c": "F16C",
    "fma": "FMA",
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512-VNNI",
    "avx512_bf16": "AVX-512-BF16",
    "amx_tile": "AMX",
    "asimd": "NEON",
    "asimdhp": "FP16",
    "asimddp": "DOTPROD",
    "i8mm": "I8MM",
    "sve": "SVE",
    "sve2": "SVE2",
    "sme": "SME",
}


@dataclass(frozen=True, slots=True)
class Hardware:
    """One look at the machine.

    `physical_cores` counts the machine's, hyperthreads not; `usable_cores` are those of them that this process may use
    by its affinity and its CPU quota, at least 1. `total_ram_bytes` and `available_ram_bytes` (free, or freed on
    demand) are the machine's or the cgroup's, whichever is less. `system` and `architecture` are as in uname.
    """

    physical_cores: int
    usable_cores: int
    total_ram_bytes: int
    available_ram_bytes: int
    instruction_sets: tuple[str, ...]
    cpu_name: str = ""
    system: str = "Linux"
    architecture: str = "x86_64"
    gpus: Gpus = _NO_GPUS


def detect() -> Hardware:
    """Looks now; raises nothing. With an NVIDIA driver it takes a tenth of a second, or seconds where GPUs sleep."""
    return dataclasses.replace(detect_host(), gpus=gpu.detect(_ROOT))


def detect_host(root: Path = _ROOT, cpus: Iterable[int] | None = None) -> Hardware:
    """As `detect`, but blind to GPUs: costs a millisecond. What the kernel does not tell is taken from sysconf or left
    out. `root` and `cpus` (the logical CPUs this process may run on) are there for tests."""
    allowed = os.sched_getaffinity(0) if cpus is None else frozenset(cpus)
    usable_cores = min(len({_core_of(root, cpu) for cpu in allowed}), _cpu_quota(root))
    total_bytes, available_bytes = _memory_bytes(root)
    for limit_bytes, used_bytes in _memory_limits(root):
        total_bytes = min(total_bytes, limit_bytes)
        available_bytes = min(available_bytes, max(limit_bytes - used_bytes, 0))
    return Hardware(
        physical_cores=_physical_cores(root) or len(allowed),
        usable_cores=max(usable_cores, 1),
        total_ram_bytes=total_bytes,
        available_ram_bytes=available_bytes,
        instruction_sets=_instruction_sets(root),
        cpu_name=next(_cpu_facts(root, "model name"), ""),
        system=platform.system(),
        architecture=platform.machine(),
    )


def to_json(hardware: Hardware) -> str:
    """JSON text that `from_json` reads back."""
    return json.dumps(dataclasses.asdict(hardware), indent=2)


def from_json(text: str) -> Hardware:
    """The machine that `to_json` has written down. Raises ValueError, which names every field that is wrong."""
    from pydantic import TypeAdapter, ValidationError  # noqa: PLC0415 - only doctor reads machines

    try:
        return TypeAdapter(Hardware).validate_json(text)
    except ValidationError as error:
        problems = [(".".join(map(str, found["loc"])), found["msg"]) for found in error.errors()]
        raise ValueError("; ".join(f"{place}: {text}" if place else text for place, text in problems)) from error


def _physical_cores(root: Path) -> int:
    present = (root / "sys/devices/system/cpu").glob("cpu[0-9]*/topology")
    return len({_core_of(root, int(folder.parent.name[3:])) for folder in present})


def _core_of(root: Path, cpu: int) -> str:
    """Hyperthreads of one core name the same siblings."""
    return _text(root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list") or str(cpu)


def _memory_bytes(root: Path) -> tuple[int, int]:
    found = {}
    for line in _text(root / "proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        found[name] = _integer(rest.removesuffix("kB"))
    total, available = found.get("MemTotal"), found.get("MemAvailable")
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    return (
        total * 1024 if total is not None else os.sysconf("SC_PHYS_PAGES") * page_bytes,
        available * 1024 if available is not None else os.sysconf("SC_AVPHYS_PAGES") * page_bytes,
    )


def _instruction_sets(root: Path) -> tuple[str, ...]:
    flags = frozenset(next(_cpu_facts(root, "flags", "Features"), "").split())
    return tuple(shown for flag, shown in _INSTRUCTION_SETS.items() if flag in flags)


def _cpu_facts(root: Path, *wanted: str) -> Iterator[str]:
    """What /proc/cpuinfo says under any of these names: x86 and ARM call the same thing differently."""
    for line in _text(root / "proc/cpuinfo").splitlines():
        name, _, rest = line.partition(":")
        if name.strip() in wanted:
            yield rest.strip()


def _cpu_quota(root: Path) -> int:
    """Whole cores that the tightest quota pays for; a fraction of a core would only make its threads wait."""
    quotas = []
    for folder in _groups(root, "cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        quota_us, period_us = _integer(quota), _integer(period)
        if quota_us is not None and period_us and quota_us > 0:
            quotas.append(max(quota_us // period_us, 1))
    return min(quotas, default=2**31)


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, used) in bytes of every group that has a limit. File cache counts as free: the kernel drops it first."""
    for folder in _groups(root, "memory"):
        limit = _integer(_text(folder / "memory.max") or _text(folder / "memory.limit_in_bytes"))
        used = _integer(_text(folder / "memory.current") or _text(folder / "memory.usage_in_bytes"))
        if limit is None or used is None:
            continue
        statistics = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").splitlines() if " " in line)
        cached = _integer(statistics.get("total_inactive_file", statistics.get("inactive_file", "0"))) or 0
        yield limit, max(used - cached, 0)


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of our control group and of all above it, in either version of cgroups."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        mount = root / "sys/fs/cgroup" / (controller if controllers else "")
        parts = Path(group).relative_to("/").parts
        for depth in range(len(parts), -1, -1):
            # Inside a container the path may be the host's: then only the mount's own root exists, and that is ours.
            yield mount.joinpath(*parts[:depth])


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""


def _integer(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:  # "max", or nothing there
        return None
