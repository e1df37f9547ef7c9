"""Latency measurement: what is reported, when it stops, and what it leaves behind."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from dataclasses import asdict
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lsmha.config import AttentionKernel, LatencyConfig, ModelConfig
from lsmha.devices import stopwatch
from lsmha.devices.hardware import device_name
from lsmha.latency import LatencyMeasurement, background_load, measure_latency
from lsmha.latency import timing as latency_module
from lsmha.latency.background_load import BackgroundLoad
from lsmha.models import CCT

CPU = torch.device("cpu")
SMALL = ModelConfig(img_size=8, num_classes=3, embed_dim=8, depth=2, num_heads=2, attention="sdpa")


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_module, "BLOCK_S", 0.02)


class FakeClock:
    """Stands in for the passes and the clock: each pass takes the next of `seconds`, over and over."""

    def __init__(self, seconds: list[float]) -> None:
        self.now = 0.0
        self.passes = 0
        self._seconds: Iterator[float] = cycle(seconds)

    def timed_pass(self, model: CCT, images: torch.Tensor) -> float:
        self.passes += 1
        duration = next(self._seconds)
        self.now += duration
        return duration


def _measure_by_fake_clock(
    monkeypatch: pytest.MonkeyPatch, seconds: list[float], latency: LatencyConfig
) -> tuple[FakeClock, LatencyMeasurement]:
    clock = FakeClock(seconds)
    monkeypatch.setattr(latency_module, "_timed_pass", clock.timed_pass)
    monkeypatch.setattr(latency_module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    (row,) = measure_latency(SMALL, latency, device=CPU)
    return clock, row


def test_one_row_per_batch_size_in_order() -> None:
    latency = LatencyConfig(batch_sizes=(4, 1, 2), warmup_s=0, min_iterations=3, max_seconds=1e-6, threads=2)
    rows = measure_latency(SMALL, latency, device=CPU)
    assert [row.batch_size for row in rows] == [4, 1, 2]
    for row in rows:
        assert 0 < row.latency_p25_ms <= row.latency_ms <= row.latency_p75_ms <= row.latency_p90_ms
        assert row.iterations >= 3
        assert (row.dtype, row.threads, row.attention) == ("fp32", 2, "sdpa (flash)")
        assert (row.device, row.torch_version) == (device_name(CPU), str(torch.__version__))


def test_row_is_flat_and_plain() -> None:
    latency = LatencyConfig(warmup_s=0, min_iterations=3, max_seconds=1e-6)
    (row,) = measure_latency(SMALL, latency, device=CPU)
    values = asdict(row)
    assert values.pop("reference_ms") is None
    assert {type(value) for value in values.values()} == {int, float, bool, str}


def test_latency_is_per_image_in_milliseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.1, 0.2, 0.3, 0.4, 0.5]
    latency = LatencyConfig(batch_sizes=(10,), warmup_s=0, min_iterations=5, max_seconds=1.0, target_spread=10.0)
    _, row = _measure_by_fake_clock(monkeypatch, seconds, latency)
    assert row.latency_ms == pytest.approx(30.0)
    assert (row.latency_p25_ms, row.latency_p75_ms) == pytest.approx((20.0, 40.0))
    assert row.latency_p90_ms == pytest.approx(np.percentile(seconds, 90) * 100)


def test_steady_passes_stop_after_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_module, "BLOCK_S", 0.5)
    latency = LatencyConfig(warmup_s=0, min_iterations=3, max_seconds=100.0)
    clock, row = _measure_by_fake_clock(monkeypatch, [0.125], latency)
    assert (row.iterations, row.converged, row.undisturbed) == (4, True, True)
    assert clock.passes == 4 + 3


def test_a_block_has_the_fewest_iterations_however_long_they_take(monkeypatch: pytest.MonkeyPatch) -> None:
    latency = LatencyConfig(warmup_s=0, min_iterations=7, max_seconds=100.0)
    _, row = _measure_by_fake_clock(monkeypatch, [0.5], latency)
    assert (row.iterations, row.converged) == (7, True)


class FakeLoad:
    """What others do, block by block."""

    shares: Iterator[float | None]

    def read(self) -> float | None:
        return next(self.shares)


@pytest.mark.parametrize(
    ("shares", "median_ms", "undisturbed"),
    [
        ([0.06, 0.06, 0.05], 250.0, True),
        ([0.06, None, 0.5], 500.0, True),
        ([0.06, 0.5, 0.5], 500.0, False),
    ],
    ids=["disturbed blocks are left out", "nothing is known of a block", "all were disturbed, so all count"],
)
def test_passes_count_while_others_do_little(
    monkeypatch: pytest.MonkeyPatch, shares: list[float | None], median_ms: float, undisturbed: bool
) -> None:
    FakeLoad.shares = iter(shares)
    monkeypatch.setattr(latency_module, "BackgroundLoad", FakeLoad)
    monkeypatch.setattr(latency_module, "BLOCK_S", 0.1)
    passes = [1.0] * 3 + [1.0] * 3 + [0.5] * 3 + [0.25] * 3
    latency = LatencyConfig(warmup_s=0, min_iterations=3, max_seconds=5.25, target_spread=1.0)
    _, row = _measure_by_fake_clock(monkeypatch, passes, latency)
    assert (row.latency_ms, row.undisturbed) == (median_ms, undisturbed)


def test_others_work_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of 2 CPUs over one second, this process took a quarter of a second, all took one."""
    stat = tmp_path / "stat"
    monkeypatch.setattr(background_load, "_STAT", stat)
    monkeypatch.setattr(background_load.os, "cpu_count", lambda: 2)
    now, own = [10.0], [5.0]
    monkeypatch.setattr(background_load.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(background_load.time, "process_time", lambda: own[0])
    ticks = os.sysconf("SC_CLK_TCK")
    stat.write_text("cpu  100 0 0 900 50 0 0 0 7 0\ncpu0 1\n")
    load = BackgroundLoad()
    now[0], own[0] = 11.0, 5.25
    stat.write_text(f"cpu  {100 + ticks // 2} {ticks // 4} {ticks // 8} 990 70 0 0 {ticks // 8} 99 0\ncpu0 1\n")
    assert load.read() == pytest.approx(0.375, abs=0.02)
    now[0] += 0.1
    assert load.read() is None  # too short to see
    now[0] += 1
    stat.unlink()
    assert load.read() is None


def test_unsteady_passes_stop_at_the_time_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    latency = LatencyConfig(warmup_s=0, min_iterations=4, max_seconds=3.0)
    _, row = _measure_by_fake_clock(monkeypatch, [0.0625, 0.1875], latency)
    assert (row.iterations, row.converged) == (24, False)


def test_fewest_iterations_are_made_whatever_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    latency = LatencyConfig(warmup_s=0, min_iterations=9, max_seconds=0.5)
    _, row = _measure_by_fake_clock(monkeypatch, [1.0, 2.0, 3.0], latency)
    assert (row.iterations, row.converged) == (9, False)


def test_first_passes_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    slow_start = [9.0, 9.0, 9.0, 9.0, *[0.5] * 5]
    latency = LatencyConfig(warmup_s=30.0, min_iterations=5, max_seconds=1.0)
    clock, row = _measure_by_fake_clock(monkeypatch, slow_start, latency)
    assert (row.latency_ms, row.latency_p90_ms, clock.passes) == (500.0, 500.0, 9)


@pytest.mark.parametrize("fails", [False, True])
def test_process_is_left_as_found(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    seen: list[tuple[int, bool, bool]] = []

    def timed_pass(model: CCT, images: torch.Tensor) -> float:
        seen.append((torch.get_num_threads(), gc.isenabled(), torch.is_inference_mode_enabled() and not model.training))
        if fails:
            raise RuntimeError("out of memory")
        return 1.0

    monkeypatch.setattr(latency_module, "_timed_pass", timed_pass)
    before = torch.get_num_threads()
    random_state = torch.get_rng_state()
    latency = LatencyConfig(threads=before + 1, warmup_s=0, min_iterations=3, max_seconds=1e-6)
    if fails:
        with pytest.raises(RuntimeError, match="out of memory"):
            measure_latency(SMALL, latency, device=CPU)
    else:
        measure_latency(SMALL, latency, device=CPU)
    assert set(seen) == {(before + 1, False, True)}
    assert torch.get_num_threads() == before
    assert gc.isenabled()
    assert not torch.is_inference_mode_enabled()
    assert torch.equal(torch.get_rng_state(), random_state)


def test_accelerator_is_idle_before_and_after_a_timed_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append(str(device)))
    clock = SimpleNamespace(perf_counter=lambda: calls.append("clock") or 0.0)
    monkeypatch.setattr(stopwatch, "time", clock)
    images: Any = SimpleNamespace(device=torch.device("cuda:1"))
    latency_module._timed_pass(lambda _: calls.append("pass"), images)  # type: ignore[arg-type]
    assert calls == ["cuda:1", "clock", "pass", "cuda:1", "clock"]


def test_garbage_collection_stays_off_where_it_was_off() -> None:
    gc.disable()
    try:
        measure_latency(SMALL, LatencyConfig(warmup_s=0, min_iterations=3, max_seconds=1e-6), device=CPU)
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize(("dtype", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("num_conv_blocks", [0, 1, 2])
def test_weights_and_images_have_the_asked_type(
    monkeypatch: pytest.MonkeyPatch, dtype: str, expected: torch.dtype, num_conv_blocks: int
) -> None:
    seen: set[tuple[torch.dtype, ...]] = set()

    def timed_pass(model: CCT, images: torch.Tensor) -> float:
        parameters = {parameter.dtype for parameter in model.parameters()}
        seen.add((images.dtype, model(images).dtype, *parameters))
        assert images.shape == (3, 3, 8, 8)
        return 1.0

    monkeypatch.setattr(latency_module, "_timed_pass", timed_pass)
    config = ModelConfig.model_validate({**SMALL.model_dump(), "num_conv_blocks": num_conv_blocks})
    latency = LatencyConfig.model_validate(
        {"batch_sizes": [3], "dtype": dtype, "warmup_s": 0.0, "min_iterations": 3, "max_seconds": 1e-6}
    )
    (row,) = measure_latency(config, latency, device=CPU)
    assert row.dtype == dtype
    assert seen == {(expected, expected, expected)}


@pytest.mark.parametrize(
    ("attention", "num_conv_blocks", "expected"),
    [
        ("sdpa", 1, "sdpa (flash)"),
        ("materialized", 0, "materialized"),
        ("auto", 2, "none"),
        ("materialized", 2, "none"),
    ],
)
def test_attention_in_effect_is_named(attention: str, num_conv_blocks: int, expected: str) -> None:
    config = ModelConfig.model_validate(
        {**SMALL.model_dump(), "attention": attention, "num_conv_blocks": num_conv_blocks}
    )
    latency = LatencyConfig(warmup_s=0, min_iterations=3, max_seconds=1e-6)
    (row,) = measure_latency(config, latency, device=CPU)
    assert row.attention == expected


def test_attention_that_is_left_open_is_the_fastest_one(monkeypatch: pytest.MonkeyPatch) -> None:
    fastest: Iterator[AttentionKernel] = iter(["materialized", "sdpa-padded"])
    asked: list[tuple[int, torch.dtype]] = []

    def fastest_inference(
        model: ModelConfig, *, batch_size: int, dtype: torch.dtype, device: torch.device
    ) -> AttentionKernel:
        asked.append((batch_size, dtype))
        return next(fastest)

    monkeypatch.setattr(latency_module, "fastest_inference", fastest_inference)
    config = SMALL.model_copy(update={"attention": "auto"})
    latency = LatencyConfig(batch_sizes=(1, 4), dtype="bf16", warmup_s=0, min_iterations=3, max_seconds=1e-6)
    rows = measure_latency(config, latency, device=CPU)
    assert [row.attention for row in rows] == ["materialized", "sdpa-padded (flash)"]
    assert asked == [(1, torch.bfloat16), (4, torch.bfloat16)]
