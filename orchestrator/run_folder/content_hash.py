"""What was run, as a key: equal for equal work, so that nothing is done twice and nothing taken for something else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from lsmha.config import RECIPE_VERSION, ModelConfig, TrainConfig

KEY_LENGTH = 12
"""Hex digits of a key in a file name; a run has far fewer records than 2^24."""


def key_of(work: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of what was run, given as plain values."""
    text = json.dumps(work, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def training_key(model: ModelConfig, train: TrainConfig, data: str) -> str:
    """Key of a training run: architecture, recipe with its seed and epochs, the data's digest, the code's version."""
    return key_of(
        {
            "model": model.canonical().model_dump(mode="json"),
            "train": train.model_dump(mode="json"),
            "data": data,
            "recipe_version": RECIPE_VERSION,
        }
    )
