"""From `DataConfig` to a `Dataset`: one loader per data set, then the checks and splits that all of them share."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from lsmha.config import DataConfig
from lsmha.data.contents import check_contents
from lsmha.data.images import Dataset, LabeledImages
from lsmha.data.reading.decoding import resize_images
from lsmha.data.reading.image_folder import load_imagefolder
from lsmha.data.reading.labels import without_unused
from lsmha.data.reading.parquet import load_parquet
from lsmha.data.reading.torchvision_sets import load_cifar, load_flowers
from lsmha.data.reading.webdataset import load_webdataset
from lsmha.data.splits import stratified_split, stratified_subset
from lsmha.errors import DataError
from lsmha.progress import OnNote, OnProgress, no_progress

TEST_FRACTION = 0.2
"""Part of the images held out as test images where a set has none of its own."""

Loaded = tuple[LabeledImages, LabeledImages, "tuple[str, ...] | None"]
Loader = Callable[[DataConfig, OnProgress, OnNote], Loaded]


def load_dataset(
    config: DataConfig, *, on_progress: OnProgress = no_progress, on_note: OnNote = warnings.warn
) -> Dataset:
    """Load a data set into memory, each image decoded once, and split it.

    Args:
        config: which images, their size and how they are split.
        on_progress: called as (description, images done, images in all) about every 1000 decoded images.
        on_note: told, in one line each, what looks wrong, or was done that may not be what was wanted.

    Returns:
        The data set; `digits` has 1 channel, all others are RGB. Test images that a set comes with stay together;
        validation images do not depend on `max_train_images`.

    Raises:
        DataError: the images are absent, unreadable or inconsistent, or cannot be split as configured.
    """
    if config.name not in ("parquet", "webdataset") and "://" in (config.path or ""):
        raise DataError(f"data.path must be a local path for data.name={config.name!r}, but got {config.path!r}")
    train, test, class_names = LOADERS[config.name](config, on_progress, on_note)
    train_labels, test_labels, class_names = without_unused(
        train.labels, test.labels, class_names, source=_source(config), on_note=on_note
    )
    train, test = LabeledImages(train.images, train_labels), LabeledImages(test.images, test_labels)
    try:
        rest, held_out = stratified_split(train.labels, config.val_fraction, config.split_seed)
    except ValueError as error:
        raise DataError(f"data.val_fraction={config.val_fraction} cannot be held out: {error}") from error
    val = train.subset(held_out)
    if config.max_train_images is not None:
        rest = rest[_subset(train.labels[rest], config.max_train_images, len(class_names), config)]
    dataset = Dataset.from_splits(config.name, train=train.subset(rest), val=val, test=test, class_names=class_names)
    check_contents(dataset, source=_source(config), on_note=on_note)
    return dataset


def _subset(labels: torch.Tensor, size: int, num_classes: int, config: DataConfig) -> torch.Tensor:
    if not num_classes <= size <= len(labels):
        raise DataError(
            f"data.max_train_images={size} must lie in {num_classes}..{len(labels)}, which are the labels and the "
            "training images after validation"
        )
    return stratified_subset(labels, size, config.split_seed)


def _source(config: DataConfig) -> str:
    """What a message says of where a data set came from."""
    source = f"data.name={config.name!r}, data.path={config.path!r}"
    return f"{source}, data.label_column={config.label_column!r}" if config.name == "parquet" else source


def _load_digits(config: DataConfig, on_progress: OnProgress, on_note: OnNote) -> Loaded:
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
    "webdataset": load_webdataset,
}
