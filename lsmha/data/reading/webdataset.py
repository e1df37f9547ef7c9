"""Tar files in the common form of WebDataset: files of one name are a sample, told apart by what follows the first dot.

0001.jpg 0001.cls 0002.jpg 0002.cls ...
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
from PIL import Image

from lsmha.config import DataConfig
from lsmha.data.images import LabeledImages
from lsmha.data.reading.decoding import Record, decode_splits
from lsmha.data.reading.labels import numbered
from lsmha.data.reading.layout import SplitFile, find_splits, is_hidden, printable, readable
from lsmha.errors import DataError
from lsmha.progress import OnNote, OnProgress

KIND = "tar"
LABELS = ("cls", "label", "txt", "json")
"""Kinds of files that hold a label, the first that a sample has; of JSON the field `data.label_column`, or one of these
two."""
JSON_FIELDS = ("label", "cls")

Sample = dict[str, bytes]
"""Contents by kind."""


def load_webdataset(
    config: DataConfig, on_progress: OnProgress, on_note: OnNote
) -> tuple[LabeledImages, LabeledImages, tuple[str, ...] | None]:
    """Training images, test images and class names, which are None where labels are numbers.

    Raises:
        DataError: no matching or unreadable files, samples without image or label, or damaged images.
    """
    if config.path is None:
        raise DataError("data.path must be the folder or file glob of the tar files for data.name='webdataset'")
    layout = find_splits(config.path, suffix=".tar", kind=KIND)
    train_files, test_files = layout.train, layout.test or layout.val
    train_labels, test_labels, names = numbered(
        _labels("train", train_files, config), _labels("test", test_files, config)
    )
    return *decode_splits(
        (partial(_images, train_files, config), train_labels),
        (partial(_images, test_files, config), test_labels),
        config,
        on_progress,
    ), names


def _labels(split: str, files: Sequence[SplitFile], config: DataConfig) -> np.ndarray:
    """(n,): whole numbers where all are, else words."""
    found = [_label(sample, where, config) for where, sample in _samples(files, images=False)]
    if not found:
        raise DataError(f"data.path={config.path!r} has no samples in its {split} files; at least one is needed")
    if all(label.isdecimal() and label.isascii() for label in found):
        if (longest := max(found, key=len)) and len(longest) > 18:
            raise DataError(f"data.path={config.path!r}: labels must have at most 18 digits, but one is {longest}")
        return np.array([int(label) for label in found], dtype=np.int64)
    return np.array(found, dtype=np.str_)


def _label(sample: Sample, where: str, config: DataConfig) -> str:
    kind = next((kind for kind in LABELS if kind in sample), None)
    if kind is None:
        raise DataError(f"data.path: {where} has no label ({', '.join(LABELS)}), but {', '.join(sample) or 'nothing'}")
    try:
        text = sample[kind].decode("utf-8").strip()
        if kind == "json":
            fields = json.loads(text)
            name = config.label_column or next(field for field in JSON_FIELDS if field in fields)
            text = str(fields[name])
    except (ValueError, KeyError, TypeError, StopIteration):
        wanted = config.label_column or " or ".join(JSON_FIELDS)
        raise DataError(f"data.label_column={config.label_column!r}: no {wanted} in the {kind} of {where}") from None
    if not text:
        raise DataError(f"data.path: {where} has an empty label")
    return text


def _images(files: Sequence[SplitFile], config: DataConfig) -> Iterator[Record]:
    for where, sample in _samples(files, images=True):
        yield where, _image(sample, where, config)


def _image(sample: Sample, where: str, config: DataConfig) -> bytes:
    images = [kind for kind in sample if _is_image(kind)]
    kind = config.image_column or (images[0] if len(images) == 1 else None)
    if kind not in sample:
        raise DataError(
            f"data.image_column={config.image_column!r} must name one image of each sample, of which {where} has "
            f"{', '.join(images) or 'none'}"
        )
    return sample[kind]


def _samples(files: Sequence[SplitFile], *, images: bool) -> Iterator[tuple[str, Sample]]:
    """Where each sample is, and its images or all else of it."""
    for file in files:
        with readable(file.path, KIND), file.open() as handle, tarfile.open(fileobj=handle, mode="r|*") as tar:
            key, sample = "", Sample()
            for member in tar:
                name = member.name.rpartition("/")[2]
                kind = name.partition(".")[2]
                if not member.isfile() or is_hidden(name) or not kind:
                    continue
                if (of := member.name.removesuffix(f".{kind}")) != key:
                    if key:
                        yield f"{file} sample {printable(key)}", sample
                    key, sample = of, {}
                if _is_image(kind) is images and (content := tar.extractfile(member)) is not None:
                    sample[kind.lower()] = content.read()
            if key:
                yield f"{file} sample {printable(key)}", sample


def _is_image(kind: str) -> bool:
    return f".{kind.lower().rpartition('.')[2]}" in Image.registered_extensions()
