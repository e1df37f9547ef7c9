"""Training runs beside one another, at toy size on CPU cores; shares of GPUs go the same way."""

from __future__ import annotations

import torch
from tiny_data import tiny_model, tiny_recipe

from lsmha.bench.packing import measure_packing

CPU = torch.device("cpu")


def test_runs_train_beside_one_another() -> None:
    told: list[tuple[int, float]] = []
    packing = measure_packing(
        tiny_model(),
        tiny_recipe(),
        device=CPU,
        max_runs=2,
        data_bytes=1 << 20,
        run_s=0.05,
        on_measured=lambda runs, images_per_s: told.append((runs, images_per_s)),
    )
    assert dict(told) == packing.images_per_s
    assert list(packing.images_per_s) == [1, 2]
    assert min(packing.images_per_s.values()) > 0
    assert packing.runs in (1, 2)
    assert packing.memory >= 1 << 20
