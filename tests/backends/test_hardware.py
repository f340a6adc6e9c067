"""Real folders shaped like /proc and /sys of the machines that matter."""

from __future__ import annotations

import os
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from backends.hardware import Hardware, detect_host, from_json, to_json

GIB = 2**30
MEMINFO = "MemTotal: 33554432 kB\nMemFree: 1 kB\nMemAvailable: 16777216 kB\n"


def _machine(root: Path, files: dict[str, str], *, siblings: tuple[str, ...] = ("0-1", "0-1", "2-3", "2-3")) -> Path:
    """32 GiB of memory, 16 available; `siblings` are the hyperthreads of each logical CPU."""
    tree = {"proc/meminfo": MEMINFO, "proc/cpuinfo": "processor : 0\nflags : fpu avx2 fma avx avx512f\n"}
    for cpu, threads in enumerate(siblings):
        tree[f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = threads + "\n"
    for name, text in (tree | files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_hyperthreads_are_no_cores(tmp_path: Path) -> None:
    found = detect_host(_machine(tmp_path, {}), cpus=range(4))
    assert (found.physical_cores, found.usable_cores) == (2, 2)


@pytest.mark.parametrize(("cpus", "usable"), [((0,), 1), ((0, 1), 1), ((0, 2), 2), ((), 1)])
def test_only_cores_of_our_affinity_are_usable(tmp_path: Path, cpus: tuple[int, ...], usable: int) -> None:
    found = detect_host(_machine(tmp_path, {}), cpus=cpus)
    assert (found.physical_cores, found.usable_cores) == (2, usable)


CGROUP_CPU = {
    "v2-whole": ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "200000 100000\n"}, 2),
    "v2-fraction": ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "50000 100000\n"}, 1),
    "v2-none": ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/cpu.max": "max 100000\n"}, 4),
    "v2-of-a-group-above": ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n"}, 3),
    "v2-in-a-container": ({"proc/self/cgroup": "0::/host/path\n", "sys/fs/cgroup/cpu.max": "300000 100000\n"}, 3),
    "v1": (
        {
            "proc/self/cgroup": "3:cpu,cpuacct:/job\n2:memory:/job\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_quota_us": "250000\n",
            "sys/fs/cgroup/cpu/job/cpu.cfs_period_us": "100000\n",
        },
        2,
    ),
    "v1-none": (
        {
            "proc/self/cgroup": "3:cpu:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
        4,
    ),
}


@pytest.mark.parametrize(("files", "usable"), CGROUP_CPU.values(), ids=CGROUP_CPU.keys())
def test_cpu_quota_bounds_the_usable_cores(tmp_path: Path, files: dict[str, str], usable: int) -> None:
    found = detect_host(_machine(tmp_path, files, siblings=("0", "1", "2", "3")), cpus=range(4))
    assert (found.physical_cores, found.usable_cores) == (4, usable)


CGROUP_MEMORY = {
    "no-cgroup": ({}, 32, 16),
    "v2": (
        {
            "proc/self/cgroup": "0::/a\n",
            "sys/fs/cgroup/a/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/a/memory.current": f"{5 * GIB}\n",
            "sys/fs/cgroup/a/memory.stat": f"anon 1\ninactive_file {2 * GIB}\n",
        },
        8,
        5,
    ),
    "v2-none": (
        {
            "proc/self/cgroup": "0::/a\n",
            "sys/fs/cgroup/a/memory.max": "max\n",
            "sys/fs/cgroup/a/memory.current": "1\n",
        },
        32,
        16,
    ),
    "v2-roomier-than-the-machine": (
        {
            "proc/self/cgroup": "0::/a\n",
            "sys/fs/cgroup/a/memory.max": f"{500 * GIB}\n",
            "sys/fs/cgroup/a/memory.current": f"{GIB}\n",
        },
        32,
        16,
    ),
    "v2-over-its-limit": (
        {
            "proc/self/cgroup": "0::/a\n",
            "sys/fs/cgroup/a/memory.max": f"{GIB}\n",
            "sys/fs/cgroup/a/memory.current": f"{2 * GIB}\n",
        },
        1,
        0,
    ),
    "v1": (
        {
            "proc/self/cgroup": "2:memory:/job\n",
            "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{4 * GIB}\n",
            "sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{3 * GIB}\n",
            "sys/fs/cgroup/memory/job/memory.stat": f"inactive_file 0\ntotal_inactive_file {GIB}\n",
        },
        4,
        2,
    ),
}


@pytest.mark.parametrize(("files", "total", "available"), CGROUP_MEMORY.values(), ids=CGROUP_MEMORY.keys())
def test_memory_is_the_machines_or_the_groups(
    tmp_path: Path, files: dict[str, str], total: int, available: int
) -> None:
    found = detect_host(_machine(tmp_path, files), cpus=range(4))
    assert (found.total_ram_bytes, found.available_ram_bytes) == (total * GIB, available * GIB)


@pytest.mark.parametrize(
    ("cpuinfo", "shown"),
    [
        ("flags : avx512f avx2 fma f16c nonsense\n", ("F16C", "FMA", "AVX2", "AVX-512")),
        ("Features : fp asimd asimddp i8mm\n", ("NEON", "DOTPROD", "I8MM")),
        ("processor : 0\n", ()),
    ],
    ids=["x86", "arm", "untold"],
)
def test_instruction_sets_have_the_names_people_know(tmp_path: Path, cpuinfo: str, shown: tuple[str, ...]) -> None:
    assert detect_host(_machine(tmp_path, {"proc/cpuinfo": cpuinfo}), cpus=[0]).instruction_sets == shown


def test_a_kernel_that_tells_nothing_still_gives_an_answer(tmp_path: Path) -> None:
    found = detect_host(tmp_path, cpus=range(3))
    assert (found.physical_cores, found.usable_cores, found.instruction_sets) == (3, 3, ())
    assert found.total_ram_bytes >= found.available_ram_bytes > 0


def test_this_machine() -> None:
    found = detect_host()
    assert 1 <= found.usable_cores <= len(os.sched_getaffinity(0))
    assert found.total_ram_bytes >= found.available_ram_bytes > 0


def test_hardware_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        detect_host().usable_cores = 1000  # type: ignore[misc]
    assert Hardware(1, 1, 1, 1, ()) == Hardware(1, 1, 1, 1, ())


RECORDED = sorted((Path(__file__).parent / "hardware").glob("*.json"))


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_a_machine_can_be_written_down_and_read(file: Path) -> None:
    text = file.read_text()
    assert to_json(from_json(text)) + "\n" == text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"physical_cores": 1}', "usable_cores: Field required"),
        ("{", "Invalid JSON"),
        ('{"gpus": {"devices": [{"vendor": "acme"}]}}', "gpus.devices.0.vendor: Input should be 'nvidia' or 'amd'"),
    ],
)
def test_what_is_no_machine_is_told_by_its_field(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told.replace(".", r"\.")):
        from_json(text)
