"""Images and labels in memory: one split, and a whole data set that worker processes can share."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class LabeledImages:
    """One split. Treat the tensors as read-only: they may lie in memory that other processes map too."""

    images: torch.Tensor
    """(n, C, H, W) uint8, in 0..255."""
    labels: torch.Tensor
    """(n,) int64, in 0..K-1."""

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: torch.Tensor | np.ndarray | Sequence[int]) -> LabeledImages:
        """Copy of the images at `indices` (m,), in that order."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return LabeledImages(self.images[index], self.labels[index])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits of one data set, with what a model and its input normalization need to know about them."""

    name: str
    """Name of the source, as in `DataConfig.name`."""
    train: LabeledImages
    """To fit weights on."""
    val: LabeledImages
    """To select on."""
    test: LabeledImages
    """To report on."""
    class_names: tuple[str, ...]
    """One name per label, K in all."""
    mean: tuple[float, ...]
    """Mean of each channel over the training pixels, in [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation of each channel over the training pixels, in [0, 1]; at least one gray level."""
    fingerprint: str
    """SHA-256 (hex) of the test images and labels; predictions compare only where it is equal."""

    @classmethod
    def from_splits(
        cls, name: str, *, train: LabeledImages, val: LabeledImages, test: LabeledImages, class_names: Sequence[str]
    ) -> Dataset:
        """Data set of three splits; computes channel statistics and fingerprint."""
        mean, std = _channel_statistics(train.images)
        return cls(name, train, val, test, tuple(class_names), mean, std, _fingerprint(test))

    @property
    def num_classes(self) -> int:
        """Number of labels K."""
        return len(self.class_names)

    @property
    def img_size(self) -> int:
        """Height and width, in pixels."""
        return self.train.images.shape[-1]

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return self.train.images.shape[1]

    def digest(self) -> str:
        """SHA-256 (hex) of the images and labels of all splits: what was trained on, selected by and tested on."""
        splits = "".join(_fingerprint(getattr(self, split)) for split in SPLITS)
        return hashlib.sha256(splits.encode()).hexdigest()

    def to_arrays(self) -> dict[str, Any]:
        """The data set as NumPy arrays (views, nothing is copied) and plain values, for an object store."""
        arrays: dict[str, Any] = {}
        for split in SPLITS:
            part: LabeledImages = getattr(self, split)
            arrays[f"{split}_images"] = part.images.numpy()
            arrays[f"{split}_labels"] = part.labels.numpy()
        fields = ("name", "class_names", "mean", "std", "fingerprint")
        return arrays | {field: getattr(self, field) for field in fields}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Dataset:
        """Inverse of `to_arrays`; the tensors share the arrays' memory, read-only arrays included."""
        metadata: dict[str, Any] = dict(arrays)
        with warnings.catch_warnings():
            # Object stores hand out read-only arrays. A tensor has no such flag, hence the warning; nothing in this
            # package writes into a data set.
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            for split in SPLITS:
                images, labels = (torch.from_numpy(metadata.pop(f"{split}_{part}")) for part in ("images", "labels"))
                metadata[split] = LabeledImages(images, labels)
        return cls(**metadata)


def _channel_statistics(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of (n, C, H, W) uint8 images, in [0, 1]."""
    levels = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in images.unbind(1):
        # Exact, and without a float copy of the images, which would take four times their memory.
        weights = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        center = (weights * levels).sum()
        mean.append(center.item())
        # The floor keeps constant channels finite once they are divided by it.
        std.append(max((weights * (levels - center) ** 2).sum().sqrt().item(), 1 / 255))
    return tuple(mean), tuple(std)


def _fingerprint(part: LabeledImages) -> str:
    digest = hashlib.sha256()
    for tensor in (part.images, part.labels):
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
