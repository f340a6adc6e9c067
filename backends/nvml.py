"""What NVIDIA's management library knows of the GPUs, as JSON on stdout: `python -m backends.nvml [LIBRARY]`.

Meant to be run, not imported: a driver that hangs or crashes must not take a gateway with it (gpu.py runs this). Uses
NVML alone, which comes with the driver; CUDA would create a context on every GPU. Standard library only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from ctypes import CDLL, Structure, byref, c_char_p, c_int, c_uint, c_ulonglong, c_void_p, create_string_buffer
from typing import Any

LIBRARY = "libnvidia-ml.so.1"

_NOT_SUPPORTED, _NOT_FOUND = 3, 6
_TEXT_BYTES = 96  # the longest of NVML's texts: a UUID of a MIG instance


class NvmlError(Exception):
    """NVML refused a call; the text is its own, `code` as in nvml.h."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class _Memory(Structure):
    _fields_ = (("total", c_ulonglong), ("free", c_ulonglong), ("used", c_ulonglong))


class Nvml:
    """The library, initialised. Raises OSError where there is none and NvmlError where the driver does not answer."""

    def __init__(self, library: str = LIBRARY) -> None:
        self._library = CDLL(library)
        self._library.nvmlErrorString.restype = c_char_p
        self.call("nvmlInit_v2")

    def call(self, function: str, *arguments: Any) -> None:
        """Raises NvmlError for every code but success."""
        code = getattr(self._library, function)(*arguments)
        if code:
            raise NvmlError(code, self._library.nvmlErrorString(c_int(code)).decode("utf-8", "replace"))

    def text(self, function: str, *arguments: Any) -> str:
        """The text that `function` writes into a buffer, its last two arguments."""
        buffer = create_string_buffer(_TEXT_BYTES)
        self.call(function, *arguments, buffer, c_uint(_TEXT_BYTES))
        return buffer.value.decode("utf-8", "replace")

    def number(self, function: str, *arguments: Any) -> int:
        """The number that `function` writes behind its last argument."""
        value = c_uint()
        self.call(function, *arguments, byref(value))
        return value.value

    def devices(self) -> Iterator[tuple[c_void_p, c_void_p]]:
        """Every device and the GPU that it is, or is a part of: a GPU in MIG mode counts as its instances."""
        for index in range(self.number("nvmlDeviceGetCount_v2")):
            gpu = c_void_p()
            self.call("nvmlDeviceGetHandleByIndex_v2", c_uint(index), byref(gpu))
            if not self._is_divided(gpu):
                yield gpu, gpu
                continue
            for place in range(self.number("nvmlDeviceGetMaxMigDeviceCount", gpu)):
                instance = c_void_p()
                try:
                    self.call("nvmlDeviceGetMigDeviceHandleByIndex", gpu, c_uint(place), byref(instance))
                except NvmlError as error:
                    if error.code != _NOT_FOUND:
                        raise
                else:
                    yield instance, gpu

    def _is_divided(self, gpu: c_void_p) -> bool:
        pending = c_uint()
        current = c_uint()
        try:
            self.call("nvmlDeviceGetMigMode", gpu, byref(current), byref(pending))
        except NvmlError as error:
            if error.code != _NOT_SUPPORTED:
                raise
        return current.value == 1

    def describe(self, device: c_void_p, gpu: c_void_p) -> dict[str, Any]:
        """The fields of gpu.Gpu. Memory is 0 where the GPU has none of its own and shares the machine's."""
        memory = _Memory()
        try:
            self.call("nvmlDeviceGetMemoryInfo", device, byref(memory))
        except NvmlError as error:
            if error.code != _NOT_SUPPORTED:
                raise
        major, minor = c_int(), c_int()
        self.call("nvmlDeviceGetCudaComputeCapability", gpu, byref(major), byref(minor))
        return {
            "vendor": "nvidia",
            "name": self.text("nvmlDeviceGetName", device),
            "uuid": self.text("nvmlDeviceGetUUID", device),
            "total_bytes": memory.total,
            "free_bytes": memory.free,
            "capability": f"{major.value}.{minor.value}",
        }


def look(library: str = LIBRARY) -> dict[str, Any]:
    """The fields of gpu.Gpus; what went wrong is in `problem`."""
    try:
        nvml = Nvml(library)
        # As 12040 for CUDA 12.4: the newest that the driver can run, not one that is installed.
        cuda = nvml.number("nvmlSystemGetCudaDriverVersion_v2")
        return {
            "devices": [nvml.describe(device, gpu) for device, gpu in nvml.devices()],
            "driver": nvml.text("nvmlSystemGetDriverVersion"),
            "runtime": f"CUDA {cuda // 1000}.{cuda % 1000 // 10}",
            "problem": "",
        }
    except (OSError, AttributeError, NvmlError) as error:
        return {"devices": [], "driver": "", "runtime": "", "problem": str(error)}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(look(*sys.argv[1:2])))
