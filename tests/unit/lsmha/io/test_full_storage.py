"""Storage that is really full or read-only: an OSError that says so, and the old files as they were."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from broken_storage import fill, mounted
from snapshots import snapshot
from tiny_data import tiny_dataset, tiny_model, tiny_recipe

from lsmha.io.atomic import atomic_write_text
from lsmha.io.tables import write_table
from lsmha.models import CCT
from lsmha.training.checkpoints import save_state
from lsmha.training.saved import save_logits, save_model

CPU = torch.device("cpu")


def _save_model(folder: Path) -> None:
    save_model(CCT(tiny_model()), folder, dataset=tiny_dataset(), train_config=tiny_recipe())


def _save_logits(folder: Path) -> None:
    save_logits(CCT(tiny_model()), folder, "test", dataset=tiny_dataset(), device=CPU)


WRITERS: dict[str, Callable[[Path], None]] = {
    "text": lambda folder: atomic_write_text(folder / "x.json", "x"),
    "table": lambda folder: write_table(folder / "x.parquet", [{"x": 1}]),
    "checkpoint": lambda folder: save_state({"weight": torch.zeros(100)}, folder / "x.pt"),
    "model": _save_model,
    "logits": _save_logits,
}


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    folder = tmp_path / "storage"
    folder.mkdir()
    with mounted(folder, "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
        yield folder


def _fill(storage: Path) -> None:
    fill(storage / "filler")


def _make_read_only(storage: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", storage], check=True)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(("number", "break_storage"), [(errno.ENOSPC, _fill), (errno.EROFS, _make_read_only)])
def test_broken_storage_is_an_os_error_and_keeps_the_old_files(
    writer: str, number: int, break_storage: Callable[[Path], None], storage: Path
) -> None:
    for _ in range(2):  # a checkpoint has two files then
        WRITERS[writer](storage)
    break_storage(storage)
    before = snapshot(storage)
    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        WRITERS[writer](storage)
    assert (raised.value.errno, raised.value.strerror) == (number, os.strerror(number))
    assert snapshot(storage) == before
