"""Logits and accuracy of a model over a set of images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsmha.data import Dataset, LabeledImages, normalise

BATCH_SIZE = 500


class Evaluation(NamedTuple):
    """Mean cross-entropy, and the fraction of images whose largest logit is their label's."""

    loss: float
    accuracy: float


@torch.inference_mode()
def predict_logits(
    model: nn.Module, images: Tensor, dataset: Dataset, *, device: torch.device, bf16: bool = False
) -> Tensor:
    """Logits (n, num_classes), float32 on the CPU, of uint8 images (n, C, height, width), by the model in eval mode.

    Images are normalised with the mean and standard deviation of `dataset`'s training split. `bf16` autocasts to
    bfloat16: faster where the device computes in it, and close enough to follow a training run.
    """
    model.eval()
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        logits = [
            model(normalise(batch.to(device, non_blocking=True), dataset.mean, dataset.std)).float().cpu()
            for batch in images.split(BATCH_SIZE)
        ]
    return torch.cat(logits) if logits else torch.empty(0, dataset.num_classes)


def score_logits(logits: Tensor, labels: Tensor) -> Evaluation:
    """Loss and accuracy of logits (n, K) against labels (n,)."""
    loss = F.cross_entropy(logits, labels).item()
    return Evaluation(loss, (logits.argmax(dim=1) == labels).float().mean().item())


def evaluate(
    model: nn.Module, split: LabeledImages, dataset: Dataset, *, device: torch.device, bf16: bool = False
) -> Evaluation:
    """Loss and accuracy of the model on one split of the data set; `bf16` as in `predict_logits`."""
    return score_logits(predict_logits(model, split.images, dataset, device=device, bf16=bf16), split.labels)
