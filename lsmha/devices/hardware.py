"""The devices at hand: which to use, what they are called, whether they compute in bfloat16, and how busy they are."""

from __future__ import annotations

import platform
import time
from pathlib import Path

import torch

_CPUINFO = Path("/proc/cpuinfo")


def default_device() -> torch.device:
    """The current CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_name(device: torch.device) -> str:
    """The maker's name of the device, such as "NVIDIA H200" or "AMD EPYC"; its architecture or type if unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return _cpuinfo("model name") or platform.processor() or platform.machine() or "cpu"
    return device.type


def supports_bf16(device: torch.device) -> bool:
    """Whether the device has bfloat16 arithmetic of its own; emulation, which is slower than float32, does not count.

    On CPUs that is AVX512-BF16 or AMX-BF16.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _cpu_supports_bf16()


def _cpu_supports_bf16() -> bool:
    # Private names, there from torch 2.8 to 2.15 at least; should they go, the flags that Linux shows stand in.
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    checks = [getattr(torch.cpu, name, None) for name in names]
    if all(checks):
        return any(check() for check in checks if check)
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(_cpuinfo("flags").split())


class UtilizationMeter:
    """How busy this process keeps its device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._since = time.perf_counter(), time.process_time()

    def read(self) -> float | None:
        """Share of the time since the last reading, 0 to 1, in which the device computed.

        On CPUs that of this process's threads (`torch.get_num_threads`). On GPUs what the driver says of its latest
        fraction of a second, whoever computed; None where its library (nvidia-ml-py) is not installed.
        """
        if self._device.type == "cuda":
            try:
                return torch.cuda.utilization(self._device) / 100
            except (ImportError, RuntimeError):
                return None
        (wall, busy), self._since = self._since, (time.perf_counter(), time.process_time())
        passed = self._since[0] - wall
        return (self._since[1] - busy) / passed / torch.get_num_threads() if passed > 0 else None


def _cpuinfo(field: str) -> str:
    """The first value of a field of Linux's CPU description; empty where there is none."""
    if not _CPUINFO.is_file():
        return ""
    for line in _CPUINFO.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == field:
            return value.strip()
    return ""
