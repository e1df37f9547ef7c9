"""The batches of a training run: their order, where their images are gathered, and their augmentation.

Shapes: B images of a batch, C channels, K labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lsmha.config import TrainConfig
from lsmha.data import Augmentation, Dataset
from lsmha.training.ranks import Ranks
from lsmha.training.seeding import mix_seeds

_on_gpu: WeakKeyDictionary[Dataset, dict[torch.device, tuple[Tensor, Tensor]]] = WeakKeyDictionary()
"""Copies of training images, each as long as its data set lives: one training run after another uses them."""


class TrainingBatches:
    """The training images of a data set in batches, for any seed and epoch."""

    def __init__(self, dataset: Dataset, config: TrainConfig, *, device: torch.device) -> None:
        self._config, self._device = config, device
        self._images, self._labels = _place(dataset, device)
        self._augment = Augmentation(config.augment, dataset.mean, dataset.std, dataset.num_classes)
        self.steps_per_epoch = len(dataset.train) // config.batch_size
        """Batches of an epoch; the last partial one is dropped."""

    def indices(self, *, seed: int, epoch: int, ranks: Ranks) -> Tensor:
        """Indices (steps, B) of this rank's share of each global batch of an epoch, which counts from 1.

        The order depends on seed and epoch, not on the ranks.
        """
        generator = torch.Generator().manual_seed(mix_seeds(seed, epoch))
        order = torch.randperm(len(self._labels), generator=generator).to(self._images.device)
        whole = order[: self.steps_per_epoch * self._config.batch_size].view(self.steps_per_epoch, -1)
        return whole[:, ranks.rank :: ranks.world_size]

    def of_epoch(self, *, seed: int, epoch: int, ranks: Ranks) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented images (B, C, H, W) and targets, (B,) or (B, K), of each batch of an epoch, which counts from 1.

        What augmentation draws comes from torch's global generators.
        """
        batches = self.indices(seed=seed, epoch=epoch, ranks=ranks)
        pixels = batches.shape[1] * self._images[0].numel()
        for some in batches.split(self._augment.batches_at_once(pixels)):
            images = self._images[some].to(self._device, non_blocking=True)
            labels = self._labels[some].to(self._device, non_blocking=True)
            distorted = self._augment.distort(images.flatten(0, 1)).view_as(images)
            for images_of_batch, labels_of_batch in zip(distorted, labels, strict=True):
                yield self._augment.normalize_and_mix(images_of_batch, labels_of_batch)


def _place(dataset: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """The training images where batches are gathered: on the GPU when a quarter of its free memory holds them."""
    images, labels = dataset.train.images, dataset.train.labels
    if device.type != "cuda":
        return images, labels
    copies = _on_gpu.setdefault(dataset, {})
    if device not in copies:
        free, _ = torch.cuda.mem_get_info(device)
        if images.nbytes > free // 4:
            return images, labels
        copies[device] = images.to(device), labels.to(device)
    return copies[device]
