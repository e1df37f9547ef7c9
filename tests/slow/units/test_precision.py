"""Networks trained in bfloat16 beside ones trained in float32: as accurate, on real digits."""

from __future__ import annotations

import statistics

import pytest
import torch

from lsmha.config import AttentionKernel, DataConfig, ModelConfig, TrainConfig
from lsmha.data import load_dataset
from lsmha.training import evaluate, train

CPU = torch.device("cpu")
SEEDS = (0, 1)


@pytest.mark.parametrize("kernel", ["materialized", "sdpa"])
def test_bf16_trains_as_well_as_fp32(kernel: AttentionKernel) -> None:
    dataset = load_dataset(DataConfig(name="digits", val_fraction=0.2))
    model = ModelConfig(
        img_size=dataset.img_size, in_channels=dataset.in_channels, num_classes=dataset.num_classes, embed_dim=48,
        depth=2, num_heads=8, mlp_ratio=1.0, drop_path=0.0, attn_drop=0.0, attention=kernel,
    )  # fmt: skip

    def accuracies(precision: str) -> list[float]:
        found = []
        for seed in SEEDS:
            recipe = TrainConfig.model_validate(
                {"epochs": 10, "batch_size": 64, "learning_rate": 3e-3, "warmup_epochs": 1, "seed": seed,
                 "precision": precision}
            )  # fmt: skip
            trained = train(model, recipe, dataset, device=CPU)
            assert trained.plan.precision == precision
            found.append(evaluate(trained.evaluated_model, dataset.test, dataset, device=CPU).accuracy)
        return found

    in_fp32, in_bf16 = accuracies("fp32"), accuracies("bf16")
    assert min(in_fp32) > 0.9
    assert statistics.mean(in_bf16) == pytest.approx(statistics.mean(in_fp32), abs=0.02)
