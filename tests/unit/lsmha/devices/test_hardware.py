"""Devices: names, bfloat16 support and the default."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

from lsmha.devices import hardware
from lsmha.devices.hardware import UtilizationMeter, default_device, device_name, supports_bf16

CPU = torch.device("cpu")
TORCH_CHECKS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def _write_cpuinfo(monkeypatch: pytest.MonkeyPatch, folder: Path, text: str) -> None:
    path = folder / "cpuinfo"
    path.write_text(text)
    monkeypatch.setattr(hardware, "_CPUINFO", path)


@pytest.mark.parametrize(("available", "expected"), [(True, "cuda"), (False, "cpu")])
def test_default_device_is_cuda_where_available(
    monkeypatch: pytest.MonkeyPatch, available: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert default_device().type == expected


def test_cpu_is_named_by_its_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _write_cpuinfo(monkeypatch, tmp_path, "processor\t: 0\nmodel\t\t: 17\nmodel name\t: Some CPU: 9000\nflags\t: fpu\n")
    assert device_name(CPU) == "Some CPU: 9000"


@pytest.mark.parametrize(("processor", "machine", "expected"), [("arm", "x", "arm"), ("", "x", "x"), ("", "", "cpu")])
def test_cpu_name_falls_back_where_linux_does_not_tell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, processor: str, machine: str, expected: str
) -> None:
    monkeypatch.setattr(hardware, "_CPUINFO", tmp_path / "absent")
    monkeypatch.setattr(hardware.platform, "processor", lambda: processor)
    monkeypatch.setattr(hardware.platform, "machine", lambda: machine)
    assert device_name(CPU) == expected


def test_other_devices_are_named_by_type_and_count_as_without_bf16() -> None:
    assert device_name(torch.device("meta")) == "meta"
    assert not supports_bf16(torch.device("meta"))


@pytest.mark.parametrize(("avx512", "amx"), [(True, False), (False, True), (False, False)])
def test_cpu_bf16_is_avx512_or_amx(monkeypatch: pytest.MonkeyPatch, avx512: bool, amx: bool) -> None:
    for name, supported in zip(TORCH_CHECKS, (avx512, amx), strict=True):
        monkeypatch.setattr(torch.cpu, name, lambda supported=supported: supported)
    assert supports_bf16(CPU) is (avx512 or amx)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx512_bf16 sse", True), ("fpu amx_bf16", True), ("fpu avx512f", False), ("fpu avx512_bf16x", False)],
)
def test_cpu_bf16_falls_back_to_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, flags: str, expected: bool
) -> None:
    monkeypatch.delattr(torch.cpu, TORCH_CHECKS[0])
    _write_cpuinfo(monkeypatch, tmp_path, f"model name\t: x\nflags\t\t: {flags}\n")
    assert supports_bf16(CPU) is expected


@pytest.mark.parametrize("supported", [True, False])
def test_cuda_bf16_counts_without_emulation(monkeypatch: pytest.MonkeyPatch, supported: bool) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: asked.append(device) or nullcontext())
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or supported
    )
    assert supports_bf16(torch.device("cuda:1")) is supported
    assert asked == [torch.device("cuda:1")]


def test_torch_still_has_the_private_checks() -> None:
    assert all(callable(getattr(torch.cpu, name)) for name in TORCH_CHECKS)


def test_a_cpu_is_as_busy_as_this_process_kept_its_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    wall, busy = iter([10.0, 14.0, 15.0, 15.0]), iter([3.0, 9.0, 9.5, 9.5])
    clocks = SimpleNamespace(perf_counter=lambda: next(wall), process_time=lambda: next(busy))
    monkeypatch.setattr(hardware, "time", clocks)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    meter = UtilizationMeter(CPU)
    assert meter.read() == 0.75
    assert meter.read() == 0.25
    assert meter.read() is None  # no time has passed


def test_a_gpu_is_as_busy_as_its_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    meter = UtilizationMeter(torch.device("cuda:1"))
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 37 if device.index == 1 else 0)
    assert meter.read() == 0.37
    for error in (ModuleNotFoundError("pynvml"), RuntimeError("no driver")):
        monkeypatch.setattr(torch.cuda, "utilization", Mock(side_effect=error))
        assert meter.read() is None
