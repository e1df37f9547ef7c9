"""What was run, as a hash: equal for equal work, so that nothing is done twice and nothing taken for something else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from lsmha.config import RECIPE_VERSION, ModelConfig, TrainConfig
from lsmha.legacy import as_first_named

DIGITS_IN_NAMES = 12
"""Hex digits of a hash in a file name; a run has far fewer records than 2^24."""


def content_hash(work: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of what was run, given as plain values."""
    text = json.dumps(as_first_named(work), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def training_hash(model: ModelConfig, train: TrainConfig, data: str) -> str:
    """Hash of a training run: architecture, recipe with its seed and epochs, the data's digest, the code's version."""
    return content_hash(
        {
            "model": model.canonical().model_dump(mode="json"),
            "train": train.model_dump(mode="json"),
            "data": data,
            "recipe_version": RECIPE_VERSION,
        }
    )


def architecture_hash(model: ModelConfig) -> str:
    """Short stable name of a network: equal for networks of equal latency."""
    plain = as_first_named(latency_relevant(model).model_dump(mode="json"))
    return hashlib.sha256(json.dumps(plain, separators=(",", ":"), ensure_ascii=False).encode()).hexdigest()[
        :DIGITS_IN_NAMES
    ]


def latency_relevant(model: ModelConfig) -> ModelConfig:
    """The network as latency depends on it: dropout does nothing at inference."""
    return model.canonical().model_copy(update={"drop_path": 0.0, "attn_drop": 0.0})
