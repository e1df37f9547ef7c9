"""Data sets that torchvision downloads: CIFAR and Oxford 102 Flowers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from lsmha.config import DataConfig
from lsmha.data.images import LabeledImages
from lsmha.data.reading.decoding import decode_splits, resize_images
from lsmha.data.reading.image_folder import files_with_labels
from lsmha.errors import DataError
from lsmha.progress import OnNote, OnProgress

DEFAULT_FOLDER = "~/.cache/lsmha-sweep/data"
"""Where downloads go when `DataConfig.path` is not given."""


def load_cifar(
    config: DataConfig, on_progress: OnProgress, on_note: OnNote
) -> tuple[LabeledImages, LabeledImages, tuple[str, ...]]:
    """Training images, test images and class names of CIFAR-10 or CIFAR-100.

    Raises:
        DataError: the set is not in the folder and cannot be downloaded.
    """
    from torchvision import datasets  # here, because other sources must not wait for it

    source: Any = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[config.name]
    # torchvision unpickles the batches, which may run code; that is acceptable because it first compares each file
    # with the MD5 sum that it ships for the published one.
    archives = [(source.filename, source.tgz_md5)]
    parts, class_names = [], ()
    for train in (True, False):
        part = _open_or_download(source, config, "", archives, train=train)
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        labels = torch.tensor(part.targets, dtype=torch.int64)
        parts.append(LabeledImages(resize_images(images, config.img_size), labels))
        class_names = tuple(part.classes)
    return parts[0], parts[1], class_names


def load_flowers(
    config: DataConfig, on_progress: OnProgress, on_note: OnNote
) -> tuple[LabeledImages, LabeledImages, tuple[str, ...]]:
    """Training images (the published training and validation images), test images and names of Oxford 102 Flowers.

    Raises:
        DataError: the set is not in the folder and cannot be downloaded, or an image cannot be decoded.
    """
    from torchvision.datasets import Flowers102  # here, because other sources must not wait for it

    archives = list(Flowers102._file_dict.values())
    parts = {
        split: _open_or_download(Flowers102, config, "flowers-102", archives, split=split)
        for split in ("train", "val", "test")
    }
    samples = {
        split: [(Path(file), label) for file, label in zip(part._image_files, part._labels, strict=True)]
        for split, part in parts.items()
    }
    train, test = decode_splits(
        files_with_labels(samples["train"] + samples["val"]), files_with_labels(samples["test"]), config, on_progress
    )
    return train, test, tuple(Flowers102.classes)


def _open_or_download(
    source: Any, config: DataConfig, subfolder: str, archives: list[tuple[str, str]], **arguments: Any
) -> Any:
    """Open a torchvision data set whose archives (file name, MD5) lie, or will be put, in `subfolder` of the path."""
    from torchvision.datasets.utils import check_integrity  # here, because other sources must not wait for it

    root = Path(os.path.expanduser(config.path or DEFAULT_FOLDER))
    if str(root).startswith("~"):
        raise DataError(f"data.path must be a folder for data.name={config.name!r}: there is no home folder for {root}")
    # torchvision unpacks only when it may download; with intact archives at hand that uses no network.
    at_hand = all(check_integrity(root / subfolder / name, md5) for name, md5 in archives)
    try:
        return source(str(root), download=config.download or at_hand, **arguments)
    except (RuntimeError, OSError) as error:
        names = " and ".join(name for name, _ in archives)
        raise DataError(
            f"data.path={str(root)!r} does not hold {config.name} and data.download={config.download} failed to help "
            f"({_one_line(error)}); put {names} into {root / subfolder}, or allow the download and network access"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
