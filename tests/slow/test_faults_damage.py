"""Files of a run that are torn, flipped or missing: refused by name, set aside, and what they held done again."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from running_sweep import (
    WITH_FINALISTS,
    Reference,
    Sweep,
    assert_nothing_lost,
    assert_refused,
    flip_bit,
    snapshot,
    table,
)

from lsmha.errors import DamagedFileError

LONG = {
    "train": {"epochs": 40, "batch_size": 20, "precision": "fp32"},
    "space": {"depth": [2, 3]},
    "search": {"sampler": "grid", "num_trials": 2, "suggestion_batch": 2},
}


def tear(file: Path, seed: int) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: random.Random(seed).randrange(1, len(content))])


def test_damaged_records_are_refused_set_aside_and_made_again(
    sweep: Callable[..., Sweep], reference: Reference
) -> None:
    damaged = sweep()
    damaged.copy_of(reference.run)
    kept = snapshot(damaged.run / "records")
    flipped, torn = damaged.file_of("t0002"), damaged.file_of("t0006")
    batch = damaged.file_of("b0004", "batches")
    flip_bit(flipped, seed=3)
    tear(torn, seed=3)
    flip_bit(batch, seed=4)
    before = snapshot(damaged.run)
    for command in (damaged.again("run"), damaged.again("resume"), ["status", damaged.run], ["front", damaged.run]):
        assert_refused(damaged.do(*command), 2, "is damaged", f"lsmha-sweep repair {damaged.run}")
    assert snapshot(damaged.run) == before

    said = damaged.complete("repair", damaged.run)
    for file in (flipped, torn, batch):
        place = file.relative_to(damaged.run)
        assert str(place) in said
        assert (damaged.run / "damaged" / place).read_bytes() == before[file]
        assert not file.exists()
    assert len(table(damaged.run, "trials")) == 6

    said = damaged.complete(*damaged.again("resume"))
    ended = [line for line in said.splitlines() if line.startswith("[")]
    assert [line.split()[1] for line in ended] == ["t0002", "t0006"], "only what was lost is trained again"
    assert_nothing_lost(damaged.run, reference.run)
    after = snapshot(damaged.run / "records")
    assert {path: after.get(path) for path in kept if path not in (flipped, torn, batch)} == {
        path: content for path, content in kept.items() if path not in (flipped, torn, batch)
    }


def test_damaged_tables_are_refused_and_made_again(sweep: Callable[..., Sweep], reference: Reference) -> None:
    damaged = sweep()
    damaged.copy_of(reference.run)
    names = ["trials", "front", "curves", "latency"]
    for seed, name in enumerate(names):
        (flip_bit, tear)[seed % 2](damaged.run / f"{name}.parquet", seed)
        with pytest.raises(DamagedFileError, match=f"{name}.parquet is damaged"):
            table(damaged.run, name)
    said = damaged.complete("repair", damaged.run)
    for name in names:
        assert f"damaged: {name}.parquet, which is made again" in said
        assert table(damaged.run, name) == table(reference.run, name)
    damaged.complete(*damaged.again("resume"))
    assert_nothing_lost(damaged.run, reference.run)


def test_a_damaged_checkpoint_costs_one_epoch(sweep: Callable[..., Sweep], tmp_path: Path, address: str) -> None:
    undisturbed = Sweep(_made(tmp_path / "undisturbed"), address, **LONG)
    undisturbed.complete()
    damaged = sweep(**LONG)
    session = damaged.start()
    newest, previous = (damaged.run / "checkpoints" / name for name in ("t0000.pt", "t0000.previous.pt"))
    session.wait_until(previous.exists)
    session.process.kill()
    assert session.wait().code == -signal.SIGKILL
    if not newest.exists():  # killed between the two renames
        previous.rename(newest)
    assert damaged.records() == {}
    flip_bit(newest, seed=5)
    said = damaged.complete(*damaged.again("resume"))
    assert f"t0000: checkpoint {newest} is damaged; training goes on from the one before, after epoch" in said
    assert_nothing_lost(damaged.run, undisturbed.run)


def test_damaged_finalists_are_set_aside_and_trained_again(
    sweep: Callable[..., Sweep], reference_with_finalists: Reference
) -> None:
    damaged = sweep(**WITH_FINALISTS)
    damaged.copy_of(reference_with_finalists.run)
    one, other = sorted((damaged.run / "finalists").iterdir())
    flip_bit(one / "model.safetensors", seed=6)
    (other / "test_logits.safetensors").unlink()
    said = damaged.complete("repair", damaged.run)
    assert f"finalist {one.name}, which will be trained again: model.safetensors is damaged" in said
    assert f"finalist {other.name}, which will be trained again: test_logits.safetensors is missing" in said
    damaged.complete(*damaged.again("resume"))
    assert_nothing_lost(damaged.run, reference_with_finalists.run)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
