"""Data sets that torchvision reads: CIFAR, Oxford 102 Flowers, and folders of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lsmha.config import DataConfig
from lsmha.data.decoding import decode_images, resize_images
from lsmha.data.images import LabeledImages
from lsmha.errors import DataError
from lsmha.progress import OnProgress

DEFAULT_FOLDER = "~/.cache/lsmha-sweep/data"
"""Where downloads go when `DataConfig.path` is not given."""


def load_cifar(config: DataConfig, on_progress: OnProgress) -> tuple[LabeledImages, LabeledImages, tuple[str, ...]]:
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


def load_flowers(config: DataConfig, on_progress: OnProgress) -> tuple[LabeledImages, LabeledImages, tuple[str, ...]]:
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
    train = _decode_files("train", samples["train"] + samples["val"], config.img_size, on_progress)
    test = _decode_files("test", samples["test"], train.images.shape[-1], on_progress)
    return train, test, tuple(Flowers102.classes)


def load_imagefolder(
    config: DataConfig, on_progress: OnProgress
) -> tuple[LabeledImages, LabeledImages, tuple[str, ...]]:
    """Training images, test images and class names (the sorted folder names) below `path/train` and `path/test`.

    Raises:
        DataError: a folder is missing or empty, the labels differ, or an image cannot be decoded.
    """
    from torchvision.datasets import ImageFolder  # here, because other sources must not wait for it

    if config.path is None:
        raise DataError("data.path must be the folder with train/ and test/ for data.name='imagefolder'")
    folders = {}
    for split in ("train", "test"):
        try:
            folders[split] = ImageFolder(str(Path(config.path).expanduser() / split))
        except OSError as error:
            raise DataError(
                f"data.path={config.path!r} needs {split}/ with one folder of images per label: {_one_line(error)}"
            ) from error
    train_names, test_names = folders["train"].classes, folders["test"].classes
    if train_names != test_names:
        odd = ", ".join(sorted(set(train_names) ^ set(test_names)))
        raise DataError(f"data.path={config.path!r} needs the same labels in train/ and test/; only one has {odd}")
    samples = {split: [(Path(file), label) for file, label in folder.samples] for split, folder in folders.items()}
    train = _decode_files("train", samples["train"], config.img_size, on_progress)
    test = _decode_files("test", samples["test"], train.images.shape[-1], on_progress)
    return train, test, tuple(train_names)


def _open_or_download(
    source: Any, config: DataConfig, subfolder: str, archives: list[tuple[str, str]], **arguments: Any
) -> Any:
    """Open a torchvision data set whose archives (file name, MD5) lie, or will be put, in `subfolder` of the path."""
    from torchvision.datasets.utils import check_integrity  # here, because other sources must not wait for it

    root = Path(config.path or DEFAULT_FOLDER).expanduser()
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


def _decode_files(
    split: str, samples: list[tuple[Path, int]], img_size: int | None, on_progress: OnProgress
) -> LabeledImages:
    images = decode_images(
        lambda: ((str(file), file) for file, _ in samples),
        len(samples),
        img_size=img_size,
        description=f"decoding {split} images",
        on_progress=on_progress,
    )
    return LabeledImages(images, torch.tensor([label for _, label in samples], dtype=torch.int64))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
