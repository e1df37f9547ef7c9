"""Logits and accuracy of a model over a set of images."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsmha.config import ModelConfig
from lsmha.data import Dataset, LabeledImages, normalize
from lsmha.device_memory import total_memory
from lsmha.models.cct import CCT
from lsmha.shapes import Float, Float32, Int, UInt8
from lsmha.training.memory import inference_memory

BATCH_SIZE = 500
"""Images at a time on a CPU at most: more are no faster there."""
MEMORY_FRACTION = 1 / 8
"""Evaluation takes this part of the device's memory at most. Not of what happens to be free, on which the last bits of
results would depend; where too little is free, batches are halved until they fit."""
MAX_HEADS = 65_535
"""Images times heads at a time on a GPU at most: more than fit into one dimension of a kernel's grid."""


class Evaluation(NamedTuple):
    """Mean cross-entropy, and the fraction of images whose largest logit is their label's."""

    loss: float
    accuracy: float


@torch.inference_mode()
def predict_logits(
    model: nn.Module,
    images: UInt8[Tensor, "n C height width"],
    dataset: Dataset,
    *,
    device: torch.device,
    bf16: bool = False,
) -> Float32[Tensor, "n K"]:
    """Logits of images, on the CPU, by the model in eval mode.

    Images are normalized with the mean and standard deviation of `dataset`'s training split. `bf16` autocasts to
    bfloat16: faster where the device computes in it, and close enough to follow a training run. Batches are the largest
    that fit; networks of others have `BATCH_SIZE`.
    """
    model.eval()
    logits: list[Tensor] = []
    done, batch_size = 0, largest_batch(model.config, device) if isinstance(model, CCT) else BATCH_SIZE
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
        while done < len(images):
            batch = images[done : done + batch_size]
            try:
                of_batch = model(normalize(batch.to(device, non_blocking=True), dataset.mean, dataset.std))
            except torch.cuda.OutOfMemoryError:  # others share the device
                if batch_size == 1:
                    raise
                batch_size //= 2
            else:
                logits.append(of_batch.float())
                done += len(batch)
    # To the CPU once: each copy waits for the device.
    return torch.cat(logits).cpu() if logits else torch.empty(0, dataset.num_classes)


def largest_batch(model: ModelConfig, device: torch.device) -> int:
    """Images at a time that inference has memory for on the device, at least one."""
    fitting = int(MEMORY_FRACTION * total_memory(device)) // inference_memory(model)
    max_images = BATCH_SIZE if device.type == "cpu" else MAX_HEADS // model.num_heads
    return max(1, min(fitting, max_images))


def score_logits(logits: Float[Tensor, "n K"], labels: Int[Tensor, " n"]) -> Evaluation:
    """Loss and accuracy of logits."""
    loss = F.cross_entropy(logits, labels).item()
    return Evaluation(loss, (logits.argmax(dim=1) == labels).float().mean().item())


def evaluate(
    model: nn.Module, split: LabeledImages, dataset: Dataset, *, device: torch.device, bf16: bool = False
) -> Evaluation:
    """Loss and accuracy of the model on one split of the data set; `bf16` as in `predict_logits`."""
    return score_logits(predict_logits(model, split.images, dataset, device=device, bf16=bf16), split.labels)
