"""Whether the images of a data set are such that a network can learn from them, and be judged by them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection

import numpy as np

from lsmha.data.images import Dataset, LabeledImages
from lsmha.errors import DataError
from lsmha.progress import OnNote


def check_contents(dataset: Dataset, *, source: str, on_note: OnNote) -> None:
    """Tell of images that are there twice where that makes accuracy wrong.

    Args:
        dataset: To look through; each image once.
        source: The settings that it came from, for messages.
        on_note: Told how many images of a split are also training images, and how many have more than one label.

    Raises:
        DataError: All images are of one color, or it is true of all images of a split.
    """
    train = dataset.train.images
    if int(train.min()) == int(train.max()):
        raise DataError(
            f"{source}: all pixels of all training images are {int(train.min())}; nothing can be learned "
            "(transparent ones are put on data.background)"
        )
    train_keys = _keys(dataset.train)
    known: dict[bytes, set[int]] = {}
    for key, label in zip(train_keys, dataset.train.labels.tolist(), strict=True):
        known.setdefault(key, set()).add(label)
    ambiguous = sum(len(known[key]) > 1 for key in train_keys)
    twice = {
        "training images are there under another label, too": (ambiguous, dataset.train),
        "validation images are training images, too": (_copies(dataset.val, known), dataset.val),
        "test images are training images, too": (_copies(dataset.test, known), dataset.test),
    }
    told = [f"{count:,} of {len(split):,} {what}" for what, (count, split) in twice.items() if count]
    if any(count == len(split) for count, split in twice.values()):
        raise DataError(f"{source}: {'; '.join(told)}")
    if told:
        on_note(f"{source}: {'; '.join(told)}")


def _copies(split: LabeledImages, known: Collection[bytes]) -> int:
    return sum(key in known for key in _keys(split))


def _keys(split: LabeledImages) -> list[bytes]:
    images = np.ascontiguousarray(split.images.numpy())
    return [hashlib.blake2b(image.data, digest_size=16).digest() for image in images]
