"""From `DataConfig` to a `Dataset`: one loader per data set, then the checks and splits that all of them share."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lsmha.config import DataConfig
from lsmha.data.decoding import resize_images
from lsmha.data.images import Dataset, LabeledImages
from lsmha.data.parquet import load_parquet
from lsmha.data.splits import stratified_split, stratified_subset
from lsmha.data.torchvision_sets import load_cifar, load_flowers, load_imagefolder
from lsmha.errors import DataError
from lsmha.progress import OnProgress, no_progress

TEST_FRACTION = 0.2
"""Part of the images held out as test images where a set has none of its own."""

Loaded = tuple[LabeledImages, LabeledImages, "tuple[str, ...] | None"]
Loader = Callable[[DataConfig, OnProgress], Loaded]


def load_dataset(config: DataConfig, *, on_progress: OnProgress = no_progress) -> Dataset:
    """Load a data set into memory, each image decoded once, and split it.

    Args:
        config: which images, their size and how they are split.
        on_progress: called as (description, images done, images in all) about every 1000 decoded images.

    Returns:
        The data set; `digits` has 1 channel, all others are RGB. Test images that a set comes with stay together;
        validation images do not depend on `max_train_images`.

    Raises:
        DataError: the images are absent, unreadable or inconsistent, or cannot be split as configured.
    """
    if config.name != "parquet" and "://" in (config.path or ""):
        raise DataError(f"data.path must be a local path for data.name={config.name!r}, but got {config.path!r}")
    train, test, class_names = LOADERS[config.name](config, on_progress)
    if class_names is None:
        class_names = tuple(str(label) for label in range(int(train.labels.max()) + 1))
    _check_labels(train.labels, test.labels, len(class_names), config)
    try:
        rest, held_out = stratified_split(train.labels, config.val_fraction, config.split_seed)
    except ValueError as error:
        raise DataError(f"data.val_fraction={config.val_fraction} cannot be held out: {error}") from error
    val = train.subset(held_out)
    if config.max_train_images is not None:
        rest = rest[_subset(train.labels[rest], config.max_train_images, len(class_names), config)]
    return Dataset.from_splits(config.name, train=train.subset(rest), val=val, test=test, class_names=class_names)


def _subset(labels: torch.Tensor, size: int, num_classes: int, config: DataConfig) -> torch.Tensor:
    if not num_classes <= size <= len(labels):
        raise DataError(
            f"data.max_train_images={size} must lie in {num_classes}..{len(labels)}, which are the labels and the "
            "training images after validation"
        )
    return stratified_subset(labels, size, config.split_seed)


def _check_labels(train: torch.Tensor, test: torch.Tensor, num_classes: int, config: DataConfig) -> None:
    source = f"data.name={config.name!r}, data.path={config.path!r}"
    if config.name == "parquet":
        source += f", data.label_column={config.label_column!r}"
    if num_classes < 2:
        raise DataError(f"{source}: {num_classes} label; at least 2 are needed")
    for split, labels in {"training": train, "test": test}.items():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= num_classes:
            raise DataError(f"{source}: {split} labels {low}..{high}; they must lie in 0..{num_classes - 1}")
    missing = (torch.bincount(train, minlength=num_classes) == 0).nonzero().flatten().tolist()
    if missing:
        raise DataError(f"{source}: no training image of labels {missing[:10]}; each of 0..{num_classes - 1} needs one")


def _load_digits(config: DataConfig, on_progress: OnProgress) -> Loaded:
    from sklearn.datasets import load_digits  # here, because other sources must not wait for it

    digits = load_digits()
    images = torch.from_numpy(digits.images).unsqueeze(1)
    images = (images * (255 / 16)).round().to(torch.uint8)
    everything = LabeledImages(resize_images(images, config.img_size), torch.from_numpy(digits.target).long())
    train, test = stratified_split(everything.labels, TEST_FRACTION, config.split_seed)
    return everything.subset(train), everything.subset(test), tuple(str(name) for name in digits.target_names)


LOADERS: dict[str, Loader] = {
    "digits": _load_digits,
    "cifar10": load_cifar,
    "cifar100": load_cifar,
    "flowers102": load_flowers,
    "imagefolder": load_imagefolder,
    "parquet": load_parquet,
}
