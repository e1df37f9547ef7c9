"""Logits on disk: what committees and error analyses need of a trained model."""

from __future__ import annotations

import json
from typing import Literal, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, device

from lsmha.data import Dataset, LabeledImages
from lsmha.errors import DamagedFileError
from lsmha.io.checksums import CHECKSUM_PLACEHOLDER, checked, write_checked
from lsmha.io.paths import RunPath
from lsmha.models import CCT
from lsmha.training.evaluation import Evaluation, predict_logits, score_logits

HeldOut = Literal["val", "test"]
"""`val` logits are there to choose committee members by, `test` logits to report on."""


class StoredLogits(NamedTuple):
    """Logits (n, K), labels (n,), and the fingerprint of the test set that goes with them."""

    logits: Tensor
    labels: Tensor
    fingerprint: str


def logits_path(folder: RunPath, split: HeldOut) -> RunPath:
    """Where a model's folder keeps the logits of a split."""
    return folder / f"{split}_logits.safetensors"


def save_logits(model: CCT, folder: RunPath, split: HeldOut, *, dataset: Dataset, device: device) -> Evaluation:
    """Predict a split once, keep logits and labels in `folder`, which is made, and return loss and accuracy.

    Raises:
        OSError: The storage is full, read-only or gone; what was saved before stays.
    """
    folder.mkdir(exist_ok=True)
    images: LabeledImages = getattr(dataset, split)
    logits = predict_logits(model, images.images, dataset, device=device)
    tensors = {"logits": logits.contiguous(), "labels": images.labels.clone()}
    metadata = {"fingerprint": dataset.fingerprint, "dataset": dataset.name, "checksum": CHECKSUM_PLACEHOLDER}
    write_checked(logits_path(folder, split), save(tensors, metadata=metadata))
    return score_logits(logits, images.labels)


def load_logits(folder: RunPath, split: HeldOut) -> StoredLogits:
    """What `save_logits` kept.

    Raises:
        OSError: There is no such file.
        DamagedFileError: It is damaged, or of another kind.
    """
    path = logits_path(folder, split)
    content = path.read_bytes()
    try:
        tensors = load(content)
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])  # after its length
        stored = StoredLogits(tensors["logits"], tensors["labels"], header["__metadata__"]["fingerprint"])
    except (SafetensorError, KeyError, TypeError) as error:
        raise DamagedFileError(f"{path} does not hold logits: {' '.join(str(error).split())}") from None
    checked(content, path, required=False)
    return stored
