"""Fixtures of several test files."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tiny_data import tiny_dataset

from lsmha.data import Dataset


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Computes on one thread: on images this small, more of them only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny() -> Dataset:
    return tiny_dataset()
