"""Random images: what training, inference and analysis cost does not depend on what is in them."""

from __future__ import annotations

import torch

from lsmha.data import Dataset, LabeledImages


def random_images(
    count: int, *, num_classes: int, img_size: int = 32, in_channels: int = 3, seed: int
) -> LabeledImages:
    """Uniform noise (count, in_channels, img_size, img_size), with labels in turn."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, in_channels, img_size, img_size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return LabeledImages(images, torch.arange(count) % num_classes)


def random_dataset(
    *, train: int, val: int = 1, test: int = 1, num_classes: int, img_size: int = 32, in_channels: int = 3
) -> Dataset:
    """A data set of so many random images."""
    splits = {
        name: random_images(count, num_classes=num_classes, img_size=img_size, in_channels=in_channels, seed=seed)
        for seed, (name, count) in enumerate({"train": train, "val": val, "test": test}.items())
    }
    return Dataset.from_splits("random", **splits, class_names=[str(label) for label in range(num_classes)])
