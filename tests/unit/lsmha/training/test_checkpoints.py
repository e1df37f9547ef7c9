"""Checkpoints: the newest good state is found, whatever happened to the files."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_data import assert_same_bits

from lsmha.errors import DamagedFileError
from lsmha.training.checkpoints import checkpoint_files, load_state, remove_checkpoint, save_state


def _state(epoch: int) -> dict[str, Any]:
    weights = torch.randn(50, generator=torch.Generator().manual_seed(epoch))
    return {"epoch": epoch, "model": {"weight": weights, "step": torch.tensor(epoch)}, "history": [{"loss": 0.1}]}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint after two epochs."""
    for epoch in (1, 2):
        save_state(_state(epoch), tmp_path / "run.pt")
    return tmp_path / "run.pt"


def test_newest_state_is_loaded_and_the_one_before_kept(checkpoint: Path) -> None:
    for epoch in (3, 4):
        save_state(_state(epoch), checkpoint)
        assert sorted(checkpoint.parent.iterdir()) == sorted(checkpoint_files(checkpoint))
        state, damaged = load_state(checkpoint, map_location="cpu")
        assert damaged == []
        assert_same_bits(state, _state(epoch))
        checkpoint.rename(checkpoint.with_name("newest"))
        assert_same_bits(load_state(checkpoint, map_location="cpu").state, _state(epoch - 1))
        checkpoint.with_name("newest").rename(checkpoint)


def test_flipped_bits_of_the_newest_lead_to_the_one_before(checkpoint: Path) -> None:
    content = checkpoint.read_bytes()
    generator = random.Random(0)
    bits = [*range(8 * 80), *(generator.randrange(8 * len(content)) for _ in range(1000))]  # the header is 78 bytes
    for bit in bits:
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        checkpoint.write_bytes(damaged)
        state, passed_over = load_state(checkpoint, map_location="cpu")
        assert state["epoch"] == 1
        assert passed_over == [checkpoint]
    assert_same_bits(state, _state(1))


def test_cut_off_file_leads_to_the_one_before(checkpoint: Path) -> None:
    content = checkpoint.read_bytes()
    for kept in (0, 1, 77, 78, 79, len(content) // 2, len(content) - 1):
        checkpoint.write_bytes(content[:kept])
        state, passed_over = load_state(checkpoint, map_location="cpu")
        assert (state["epoch"], passed_over) == (1, [checkpoint])
    checkpoint.write_bytes(content + b"\0")
    assert load_state(checkpoint, map_location="cpu").state["epoch"] == 1


def test_no_good_file_is_an_error_that_names_them(checkpoint: Path) -> None:
    for file in checkpoint_files(checkpoint):
        file.write_bytes(b"x")
    with pytest.raises(DamagedFileError) as raised:
        load_state(checkpoint, map_location="cpu")
    assert all(str(file) in str(raised.value) for file in checkpoint_files(checkpoint))


def test_damaged_file_does_not_take_the_place_of_the_good_one(checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    save_state(_state(3), checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:-1])
    state, passed_over = load_state(checkpoint, map_location="cpu")
    assert (state["epoch"], passed_over) == (1, [checkpoint])


def test_presence_and_removal_are_of_both_files(checkpoint: Path) -> None:
    for lost in checkpoint_files(checkpoint):
        content = lost.read_bytes()
        lost.unlink()
        assert any(file.exists() for file in checkpoint_files(checkpoint))
        lost.write_bytes(content)
    remove_checkpoint(checkpoint)
    assert list(checkpoint.parent.iterdir()) == []
    assert not any(file.exists() for file in checkpoint_files(checkpoint))
    remove_checkpoint(checkpoint)
    with pytest.raises(FileNotFoundError, match=r"run\.pt"):
        load_state(checkpoint, map_location="cpu")
