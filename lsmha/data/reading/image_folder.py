"""Images in folders: one for each split, and in each of them one for each label."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image

from lsmha.config import DataConfig
from lsmha.data.images import LabeledImages
from lsmha.data.reading.decoding import Encoded, decode_splits
from lsmha.data.reading.layout import is_hidden, printable, split_of
from lsmha.errors import DataError
from lsmha.progress import OnNote, OnProgress


def load_imagefolder(
    config: DataConfig, on_progress: OnProgress, on_note: OnNote
) -> tuple[LabeledImages, LabeledImages, tuple[str, ...]]:
    """Training images, test images and class names: those of the folders below `path/train` and `path/test`, sorted.

    Where there is no folder of test images, that of validation images is taken. Names that begin with a dot are left
    out, and so are files of other kinds than images, by their suffix.

    Raises:
        DataError: a folder is missing, the labels differ, or an image cannot be decoded.
    """
    if config.path is None:
        raise DataError("data.path must be the folder with train/ and test/ for data.name='imagefolder'")
    root = Path(os.path.expanduser(config.path))
    folders = _split_folders(root, config)
    images = {split: dict(_images_by_label(folder)) for split, folder in folders.items()}
    for split, folder in folders.items():
        if not any(images[split].values()):
            raise DataError(f"data.path={config.path!r} needs {folder.name}/ with one folder of images per label")
    names = sorted(images["train"])
    if odd := sorted({*images["test"]} ^ {*names}):
        raise DataError(
            f"data.path={config.path!r} needs the same labels in {folders['train'].name}/ and {folders['test'].name}/; "
            f"only one has {', '.join(odd)}"
        )
    samples = {
        split: [(file, label) for label, name in enumerate(names) for file in by_label[name]]
        for split, by_label in images.items()
    }
    train, test = decode_splits(
        files_with_labels(samples["train"]), files_with_labels(samples["test"]), config, on_progress
    )
    return train, test, tuple(names)


def files_with_labels(samples: Sequence[tuple[Path, int]]) -> Encoded:
    """Image files and their labels, to be decoded."""
    labels = torch.tensor([label for _, label in samples], dtype=torch.int64)
    return (lambda: ((printable(file), file) for file, _ in samples)), labels


def _split_folders(root: Path, config: DataConfig) -> dict[str, Path]:
    found: dict[str, list[Path]] = {"train": [], "val": [], "test": []}
    try:
        below = sorted(path for path in root.iterdir() if path.is_dir() and not is_hidden(path.name))
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"data.path={config.path!r} needs train/ and test/, but cannot be listed: {reason}") from error
    for path in below:
        if (named := split_of([path.name])) is not None:
            found[named[0]].append(path)
    folders = {"train": found["train"], "test": found["test"] or found["val"]}
    for split, paths in folders.items():
        if len(paths) != 1:
            there = ", ".join(path.name for path in paths or below) or "nothing"
            raise DataError(
                f"data.path={config.path!r} needs {split}/ with one folder of images per label, one of that kind, but "
                f"has {there}"
            )
    return {split: paths[0] for split, paths in folders.items()}


def _images_by_label(folder: Path) -> Iterator[tuple[str, list[Path]]]:
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    for label in sorted(folder.iterdir()):
        if label.is_dir() and not is_hidden(label.name):
            found = [file for file in label.rglob("*") if file.suffix.lower() in suffixes and file.is_file()]
            shown = [file for file in found if not any(map(is_hidden, file.relative_to(label).parts))]
            yield printable(label.name), sorted(shown, key=lambda file: (str(file.parent), file.name))
