"""Data sets whose images say nothing, or are there twice."""

from __future__ import annotations

import pytest
import torch

from lsmha.data.contents import check_contents
from lsmha.data.images import Dataset, LabeledImages
from lsmha.errors import DataError


def dataset(train: list[int], val: list[int], test: list[int], labels: list[int] | None = None) -> Dataset:
    """Images of one gray each."""

    def split(grays: list[int], labels: list[int] | None = None) -> LabeledImages:
        images = torch.tensor(grays, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 4, 4)
        return LabeledImages(images, torch.tensor(labels or [gray % 2 for gray in grays]))

    return Dataset.from_splits(
        "made up", train=split(train, labels), val=split(val), test=split(test), class_names="ab"
    )


def notes(*splits: list[int], labels: list[int] | None = None) -> list[str]:
    told: list[str] = []
    check_contents(dataset(*splits, labels), source="here", on_note=told.append)
    return told


def test_images_that_differ_need_no_word() -> None:
    assert notes([1, 2, 3, 4], [5, 6], [7, 8]) == []


def test_equal_images_of_one_label_need_no_word() -> None:
    assert notes([1, 1, 2, 2], [5, 6], [7, 8]) == []


@pytest.mark.parametrize(
    ("splits", "told"),
    [
        (([1, 2, 3], [3, 4], [5]), "here: 1 of 2 validation images are training images, too"),
        (([1, 2, 3], [4, 5], [6, 1, 2]), "here: 2 of 3 test images are training images, too"),
        (([1, 2, 3], [4, 5], [6, 4]), None),
    ],
)
def test_images_in_two_splits(splits: tuple[list[int], ...], told: str | None) -> None:
    assert notes(*splits) == ([told] if told else [])


def test_equal_images_under_different_labels() -> None:
    assert notes([1, 1, 2, 3], [5], [7], labels=[0, 1, 0, 1]) == [
        "here: 2 of 4 training images are there under another label, too"
    ]


@pytest.mark.parametrize(
    ("splits", "labels", "reason"),
    [
        (([7, 7, 7], [1], [2]), [0, 1, 0], "all pixels of all training images are 7"),
        (([1, 1, 2, 2], [3], [4]), [0, 1, 0, 1], "4 of 4 training images are there under another label"),
        (([1, 2, 3], [1, 2], [4]), None, "2 of 2 validation images are training images"),
        (([1, 2, 3], [4], [3, 3]), None, "2 of 2 test images are training images"),
    ],
)
def test_what_is_true_of_all_is_refused(splits: tuple[list[int], ...], labels: list[int] | None, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        notes(*splits, labels=labels)
