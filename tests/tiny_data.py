"""A data set, a network and a recipe small enough to train within a test."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lsmha.config import AugmentConfig, ModelConfig, TrainConfig
from lsmha.data import Dataset, LabeledImages
from lsmha.training import EpochMetrics

ALL_AUGMENTATION = AugmentConfig(
    flip=True,
    translate=1,
    randaugment_ops=1,
    randaugment_magnitude=15,
    random_erasing=0.5,
    mixup_alpha=0.8,
    cutmix_alpha=1.0,
)
"""Everything that draws random numbers."""


def tiny_dataset(*, images: int = 48, name: str = "tiny", seed: int = 0) -> Dataset:
    """Three labels of 8x8 RGB images: a random pattern per label under noise of a third of its range."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randint(64, 192, (3, 3, 8, 8), generator=generator)

    def split(count: int) -> LabeledImages:
        labels = torch.arange(count) % 3
        noise = torch.randint(-42, 43, (count, 3, 8, 8), generator=generator)
        return LabeledImages((patterns[labels] + noise).to(torch.uint8), labels)

    return Dataset.from_splits(name, train=split(images), val=split(24), test=split(30), class_names=("a", "b", "c"))


def tiny_model(**settings: Any) -> ModelConfig:
    """Two blocks of two heads for `tiny_dataset`, without dropout or stochastic depth, and nothing left to measure."""
    return ModelConfig(
        **{
            "img_size": 8,
            "num_classes": 3,
            "embed_dim": 8,
            "depth": 2,
            "num_heads": 2,
            "drop_path": 0.0,
            "attn_drop": 0.0,
            "attention": "materialized",
            **settings,
        }
    )


def tiny_recipe(**settings: Any) -> TrainConfig:
    """One epoch of three steps on `tiny_dataset`, at a constant peak from the first step on."""
    return TrainConfig(**{"epochs": 1, "batch_size": 16, "warmup_epochs": 0.0, "precision": "fp32", **settings})


def without_timings(history: list[EpochMetrics]) -> list[dict[str, float]]:
    """What of a history does not depend on the machine's speed."""
    return [
        {name: value for name, value in metrics.asdict().items() if name not in ("seconds", "images_per_s")}
        for metrics in history
    ]


def assert_same_bits(left: Any, right: Any, where: str = "state") -> None:
    """Nested dicts, sequences and tensors are equal, tensors bit by bit."""
    assert type(left) is type(right), where
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left:
            assert_same_bits(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same_bits(one, other, f"{where}[{index}]")
    elif isinstance(left, Tensor):
        assert left.dtype == right.dtype, where
        assert torch.equal(left, right), where
    else:
        assert left == right, where
