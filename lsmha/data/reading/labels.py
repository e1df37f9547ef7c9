"""Labels of every kind as whole numbers from 0, none of them without an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lsmha.errors import DataError
from lsmha.progress import OnNote

FEW = 10
"""How many labels a message names."""


def numbered(train: np.ndarray, test: np.ndarray) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...] | None]:
    """Labels of both splits as whole numbers, and their names.

    Args:
        train: (n,) whole numbers, which stay as they are and have no names; or words, which are numbered in order.
        test: (m,) of the same kind.

    Raises:
        DataError: One split has words and the other numbers, or a word is in the test split alone.
    """
    if (train.dtype.kind == "U") != (test.dtype.kind == "U"):
        raise DataError("data.label_column must be of words in both splits, or of whole numbers in both")
    if train.dtype.kind != "U":
        return torch.from_numpy(train.astype(np.int64)), torch.from_numpy(test.astype(np.int64)), None
    names = np.unique(train)
    if len(unknown := np.setdiff1d(test, names)):
        raise DataError(f"data.path: no training image of labels {_some(unknown.tolist())}, which test images have")
    train_labels, test_labels = (torch.from_numpy(np.searchsorted(names, labels)) for labels in (train, test))
    return train_labels, test_labels, tuple(str(name) for name in names)


def without_unused(
    train: torch.Tensor, test: torch.Tensor, names: Sequence[str] | None, *, source: str, on_note: OnNote
) -> tuple[torch.Tensor, torch.Tensor, tuple[str, ...]]:
    """The labels of both splits and their names, renumbered so that each label has a training image.

    Args:
        train: (n,) whole numbers.
        test: (m,) whole numbers.
        names: Of labels 0, 1, ...; None where they have none but their numbers.
        source: The settings that the data set came from, for messages.
        on_note: Told which names have no image.

    Raises:
        DataError: A label is negative or has no name, test images have one that no training image has, or there are
            less than two.
    """
    for split, labels in {"training": train, "test": test}.items():
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or (names is not None and high >= len(names)):
            allowed = "be at least 0" if names is None else f"lie in 0..{len(names) - 1}"
            raise DataError(f"{source}: {split} labels {low}..{high}; they must {allowed}")
    used = train.unique()
    known = set(used.tolist())
    if len(used) < 2:
        raise DataError(f"{source}: {len(used)} label; at least 2 are needed")
    if missing := [label for label in test.unique().tolist() if label not in known]:
        raise DataError(f"{source}: no training image of labels {_some(missing)}, which test images have")
    if names is None:
        return torch.searchsorted(used, train), torch.searchsorted(used, test), tuple(map(str, used.tolist()))
    if unused := [name for label, name in enumerate(names) if label not in known]:
        on_note(f"{source}: {len(unused)} labels have no image and are left out: {_some(unused)}")
        train, test = torch.searchsorted(used, train), torch.searchsorted(used, test)
    return train, test, tuple(names[label] for label in used.tolist())


def _some(labels: Sequence[object]) -> str:
    named = ", ".join(str(label) for label in labels[:FEW])
    return named if len(labels) <= FEW else f"{named} and {len(labels) - FEW} more"
