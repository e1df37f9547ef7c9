"""Test logits on disk: what committees and error analyses need of a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lsmha.atomic import atomic_path
from lsmha.data import Dataset
from lsmha.models import CCT
from lsmha.training.evaluation import Evaluation, predict_logits, score_logits

FILE_NAME = "test_logits.safetensors"


class StoredLogits(NamedTuple):
    """Logits (n, K), labels (n,), and the fingerprint of the test set they are of."""

    logits: Tensor
    labels: Tensor
    fingerprint: str


def save_test_logits(model: CCT, folder: Path, *, dataset: Dataset, device: torch.device) -> Evaluation:
    """Predict the test set once, keep logits and labels in `folder`, and return loss and accuracy."""
    logits = predict_logits(model, dataset.test.images, dataset, device=device)
    with atomic_path(folder / FILE_NAME) as temporary:
        save_file(
            {"logits": logits.contiguous(), "labels": dataset.test.labels.clone()},
            temporary,
            metadata={"fingerprint": dataset.fingerprint, "dataset": dataset.name},
        )
    return score_logits(logits, dataset.test.labels)


def load_test_logits(folder: Path) -> StoredLogits:
    """What `save_test_logits` kept.

    Raises:
        OSError: There is no such file.
    """
    with safe_open(folder / FILE_NAME, framework="pt") as file:
        return StoredLogits(file.get_tensor("logits"), file.get_tensor("labels"), file.metadata()["fingerprint"])
