"""A library with NVML's calls, compiled here, and folders shaped like the kernel's list of AMD GPUs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from backends import gpu
from backends.gpu import Gpu, Gpus, visible

GIB = 2**30
H100 = Gpu("nvidia", "Stub H100", "GPU-0", 80 * GIB, 79 * GIB, "9.0")


@pytest.fixture(scope="session")
def nvml(tmp_path_factory: pytest.TempPathFactory) -> str:
    library = tmp_path_factory.mktemp("nvml") / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("nvml_stub.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source)], check=True)
    return str(library)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    """A machine on which the NVIDIA driver is loaded."""
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvidiactl").touch()
    return tmp_path


def test_nvml_tells_names_memory_capability_and_versions(machine: Path, nvml: str) -> None:
    second = Gpu("nvidia", "Stub H100", "GPU-1", 80 * GIB, 79 * GIB, "9.0")
    assert gpu.detect(machine, {}, nvml) == Gpus((H100, second), driver="580.95.05", runtime="CUDA 13.0")
    assert gpu.detect(machine, {"CUDA_VISIBLE_DEVICES": "1"}, nvml).devices == (second,)


def test_a_divided_gpu_counts_as_its_instances(machine: Path, nvml: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_MIG", "1")
    found = gpu.detect(machine, {}, nvml).devices
    assert [(device.uuid, device.total_bytes // GIB, device.capability) for device in found] == [
        ("MIG-0", 20, "9.0"),
        ("MIG-4", 20, "9.0"),
        ("GPU-1", 80, "9.0"),
    ]


def test_a_gpu_without_memory_of_its_own_is_one(machine: Path, nvml: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STUB_UNIFIED", "1")
    assert [device.total_bytes for device in gpu.detect(machine, {}, nvml).devices] == [0, 0]


@pytest.mark.parametrize(
    ("stub", "told"),
    [
        ("STUB_INIT=18", "does not answer: Driver/library version mismatch"),
        ("STUB_CRASH=1", "asking the NVIDIA driver ended with exit code -6"),
        ("STUB_NOISE=1", "gave no answer that can be read"),
        ("STUB_HANG=1", "did not answer within 1 s"),
    ],
)
def test_a_driver_that_fails_is_told_about(
    stub: str, told: str, machine: Path, nvml: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(*stub.split("="))
    if stub == "STUB_HANG=1":
        monkeypatch.setattr(gpu, "_NVML_SECONDS", 1)
    found = gpu.detect(machine, {}, nvml)
    assert found.devices == ()
    assert told in found.problem


def test_a_driver_without_its_library_is_told_about(machine: Path) -> None:
    assert "libnothing.so: cannot open shared object file" in gpu.detect(machine, {}, "libnothing.so").problem


def test_without_a_driver_nobody_is_asked(tmp_path: Path) -> None:
    assert gpu.detect(tmp_path, {}, "libnothing.so") == Gpus()


AMD = {
    "0/properties": "cpu_cores_count 64\nsimd_count 0\ngfx_target_version 0\n",
    "1/properties": "simd_count 1216\ngfx_target_version 90402\ndrm_render_minor 128\nunique_id 4660\n",
    "10/properties": "simd_count 440\ngfx_target_version 90010\ndrm_render_minor 130\nunique_id 1\n",
    "2/properties": "simd_count 192\ngfx_target_version 110000\ndrm_render_minor 129\n",
}


def test_amd_gpus_come_from_the_kernel_in_their_order(tmp_path: Path) -> None:
    tree = {f"sys/class/kfd/kfd/topology/nodes/{name}": text for name, text in AMD.items()}
    device = "sys/class/drm/renderD128/device/"
    tree |= {device + "mem_info_vram_total": f"{192 * GIB}\n", device + "mem_info_vram_used": f"{GIB}\n"}
    tree |= {device + "product_name": "AMD Instinct MI300X\n", "sys/module/amdgpu/version": "6.12.12\n"}
    for name, text in tree.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = gpu.detect(tmp_path, {})
    assert found.driver == "6.12.12"
    assert found.devices[0] == Gpu("amd", "AMD Instinct MI300X", "GPU-1234", 192 * GIB, 191 * GIB, "gfx942")
    assert [device.capability for device in found.devices] == ["gfx942", "gfx1100", "gfx90a"]


GPUS = tuple(Gpu("nvidia", "A100", uuid, 80 * GIB, 80 * GIB, "8.0") for uuid in ("GPU-aa", "GPU-ab", "GPU-b"))
VISIBLE = {
    "unset": ({}, "GPU-aa GPU-ab GPU-b"),
    "order": ({"CUDA_VISIBLE_DEVICES": "2,0"}, "GPU-b GPU-aa"),
    "none": ({"CUDA_VISIBLE_DEVICES": ""}, ""),
    "minus-one": ({"CUDA_VISIBLE_DEVICES": "-1"}, ""),
    "up-to-the-first-bad-one": ({"CUDA_VISIBLE_DEVICES": "1,7,0"}, "GPU-ab"),
    "beginning-of-a-uuid": ({"CUDA_VISIBLE_DEVICES": "GPU-ab"}, "GPU-ab"),
    "ambiguous": ({"CUDA_VISIBLE_DEVICES": "GPU-a"}, ""),
    "not-for-this-vendor": ({"HIP_VISIBLE_DEVICES": "0"}, "GPU-aa GPU-ab GPU-b"),
}


@pytest.mark.parametrize(("environ", "expected"), VISIBLE.values(), ids=VISIBLE.keys())
def test_only_devices_that_programs_may_see_count(environ: dict[str, str], expected: str) -> None:
    assert " ".join(device.uuid for device in visible(GPUS, environ)) == expected
