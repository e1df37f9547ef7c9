"""Data sets in memory: sharing, statistics, fingerprint; and `digits`, which needs no files."""

import warnings

import numpy as np
import pytest
import torch

from lsmha.config import DataConfig
from lsmha.data import Dataset, LabeledImages, load_dataset
from lsmha.errors import DataError


@pytest.fixture(scope="module")
def digits():
    return load_dataset(DataConfig(name="digits"))


def test_digits_have_their_published_size_and_range(digits):
    assert (digits.num_classes, digits.img_size, digits.in_channels) == (10, 8, 1)
    assert [len(part) for part in (digits.train, digits.val, digits.test)] == [1294, 144, 359]
    assert digits.train.images.dtype == torch.uint8
    assert digits.train.labels.dtype == torch.int64
    assert (int(digits.train.images.min()), int(digits.train.images.max())) == (0, 255)


def test_statistics_are_those_of_the_training_pixels(digits):
    pixels = digits.train.images.double() / 255
    assert digits.mean[0] == pytest.approx(pixels.mean().item())
    assert digits.std[0] == pytest.approx(pixels.std(correction=0).item())


def test_digits_resize_on_request():
    dataset = load_dataset(DataConfig(name="digits", img_size=16))
    assert dataset.train.images.shape[1:] == (1, 16, 16)


def test_arrays_round_trip_shares_read_only_memory_silently(digits):
    arrays = digits.to_arrays()
    assert np.shares_memory(arrays["train_images"], digits.train.images.numpy())
    read_only = {name: value.copy() if isinstance(value, np.ndarray) else value for name, value in arrays.items()}
    for value in read_only.values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        restored = Dataset.from_arrays(read_only)
    assert restored.val.images.data_ptr() == read_only["val_images"].ctypes.data
    assert torch.equal(restored.test.labels, digits.test.labels)
    for field in ("name", "class_names", "mean", "std", "fingerprint"):
        assert getattr(restored, field) == getattr(digits, field)


def test_fingerprint_tells_test_sets_apart(digits):
    same = load_dataset(DataConfig(name="digits", val_fraction=0.3, max_train_images=100))
    other = load_dataset(DataConfig(name="digits", split_seed=1))
    assert same.fingerprint == digits.fingerprint != other.fingerprint


def test_validation_images_do_not_depend_on_the_training_subset(digits):
    small = load_dataset(DataConfig(name="digits", max_train_images=100))
    assert len(small.train) == 100
    assert torch.equal(small.val.images, digits.val.images)


def test_subset_follows_the_order_of_indices():
    images = LabeledImages(torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1), torch.arange(4))
    assert images.subset([2, 0]).labels.tolist() == [2, 0]
    assert images.subset(np.array([3])).images.flatten().tolist() == [3]


def test_constant_channel_has_a_usable_deviation():
    part = LabeledImages(torch.full((2, 1, 4, 4), 7, dtype=torch.uint8), torch.tensor([0, 1]))
    dataset = Dataset.from_splits("black", train=part, val=part, test=part, class_names=("a", "b"))
    assert dataset.std == (1 / 255,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"val_fraction": 0.0001}, r"data\.val_fraction=0\.0001"),
        ({"val_fraction": 0.999}, r"data\.val_fraction=0\.999"),
        ({"max_train_images": 5000}, r"data\.max_train_images=5000 must lie in 10\.\.1294"),
        ({"max_train_images": 9}, r"data\.max_train_images=9 must lie in 10\.\.1294"),
    ],
)
def test_impossible_splits_name_the_setting(settings, message):
    with pytest.raises(DataError, match=message):
        load_dataset(DataConfig(name="digits", **settings))
