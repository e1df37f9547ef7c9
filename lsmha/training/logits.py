"""Logits on disk: what committees and error analyses need of a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, device

from lsmha.checksums import UNSEALED, DamagedFileError, check_seal, write_sealed
from lsmha.data import Dataset, LabeledImages
from lsmha.models import CCT
from lsmha.training.evaluation import Evaluation, predict_logits, score_logits

HeldOut = Literal["val", "test"]
"""`val` logits are there to choose committee members by, `test` logits to report on."""


class StoredLogits(NamedTuple):
    """Logits (n, K), labels (n,), and the fingerprint of the test set that goes with them."""

    logits: Tensor
    labels: Tensor
    fingerprint: str


def logits_path(folder: Path, split: HeldOut) -> Path:
    """Where a model's folder keeps the logits of a split."""
    return folder / f"{split}_logits.safetensors"


def save_logits(model: CCT, folder: Path, split: HeldOut, *, dataset: Dataset, device: device) -> Evaluation:
    """Predict a split once, keep logits and labels in `folder`, and return loss and accuracy.

    Raises:
        OSError: The storage is full, read-only or gone; what was saved before stays.
    """
    images: LabeledImages = getattr(dataset, split)
    logits = predict_logits(model, images.images, dataset, device=device)
    tensors = {"logits": logits.contiguous(), "labels": images.labels.clone()}
    metadata = {"fingerprint": dataset.fingerprint, "dataset": dataset.name, "checksum": UNSEALED}
    write_sealed(logits_path(folder, split), save(tensors, metadata=metadata))
    return score_logits(logits, images.labels)


def load_logits(folder: Path, split: HeldOut) -> StoredLogits:
    """What `save_logits` kept.

    Raises:
        OSError: There is no such file.
        DamagedFileError: It is damaged, or of another kind.
    """
    path = logits_path(folder, split)
    try:
        with safe_open(path, framework="pt") as file:
            stored = StoredLogits(file.get_tensor("logits"), file.get_tensor("labels"), file.metadata()["fingerprint"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{path} does not hold logits: {' '.join(str(error).split())}") from None
    check_seal(path)
    return stored
