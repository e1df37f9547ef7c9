"""Scratch folders: gone with their block, and what a killed process left is gone with the next."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from lsmha.io.scratch import scratch_folder


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def make_and_be_killed() -> None:
    with scratch_folder("mine-") as folder:
        (folder / "file").touch()
        os.kill(os.getpid(), signal.SIGKILL)


def test_it_is_gone_with_its_block(temporary: Path) -> None:
    with scratch_folder("mine-") as folder:
        (folder / "sub").mkdir()
    assert list(temporary.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next_one(temporary: Path) -> None:
    killed = multiprocessing.get_context("fork").Process(target=make_and_be_killed)
    killed.start()
    killed.join()
    (temporary / "other").mkdir()
    (left,) = temporary.glob("mine-*")
    with scratch_folder("mine-") as folder:
        assert not left.exists()
        with scratch_folder("mine-") as second:  # the first one is in use
            assert folder.exists()
            assert second != folder
    assert [path.name for path in temporary.iterdir()] == ["other"]
