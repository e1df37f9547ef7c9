"""What trials that pause take on disk stays within its limit, and what was dropped for it is known."""

from __future__ import annotations

from pathlib import Path

import pytest

from lsmha.training.checkpoints import checkpoint_files
from orchestrator.config.sweep import SweepConfig
from orchestrator.run_folder.content_hash import content_hash
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import Fingerprint, TrialRecord
from orchestrator.stages.paused_checkpoints import PausedCheckpoints

CONFIG = SweepConfig(name="a", space={"num_heads": [1, 2, 4]})
KIB = 2**-20
"""In GiB."""


def pause(ledger: Ledger, trial: str, epochs: int, size: int) -> None:
    """With a checkpoint of so many bytes, in both of its files together."""
    ledger.add(
        TrialRecord(
            id=trial, trial=trial, key=content_hash({"trial": trial}), status="paused", point={"num_heads": 1},
            seed=0, params=1, macs=1, latency_ms=1.0, epochs=epochs, seconds=1.0,
        )
    )  # fmt: skip
    newest, previous = checkpoint_files(ledger.checkpoint_path(trial))
    newest.write_bytes(bytes(size - 100))
    previous.write_bytes(bytes(100))


def kept(ledger: Ledger) -> set[str]:
    return {path.name.partition(".")[0] for path in (ledger.folder / "checkpoints").iterdir()}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Three trials pause, with half a KiB each."""
    ledger = Ledger.create(tmp_path / "run", CONFIG)
    ledger.begin_session(CONFIG, Fingerprint(data="d", recipe_version=1))
    for trial in ("t0000", "t0001", "t0002"):
        pause(ledger, trial, 3, 512)
    return ledger


@pytest.mark.parametrize(
    ("limit", "left"), [(1.5, {"t0000", "t0001", "t0002"}), (1.4, {"t0000", "t0001"}), (0.6, {"t0001"}), (0.0, set())]
)
def test_the_first_are_dropped_until_the_rest_fits(ledger: Ledger, limit: float, left: set[str]) -> None:
    checkpoints = PausedCheckpoints(ledger, limit * KIB)
    order = ["t0002", "t0000", "t0001"]
    assert checkpoints.excess(order) == 1536 - limit * 1024
    checkpoints.drop(order)
    assert kept(ledger) == left
    assert checkpoints.excess(order) <= 0
    for known in (ledger, Ledger.load(ledger.folder)):
        assert {trial for trial in order if not known.is_dropped(trial)} == left
        assert sum(drop.bytes for drop in known.drops.values()) == 512 * (3 - len(left))


def test_what_begins_anew_and_pauses_later_counts_again(ledger: Ledger) -> None:
    checkpoints = PausedCheckpoints(ledger, 0.0)
    checkpoints.drop(["t0000"])
    pause(ledger, "t0000", 9, 700)
    assert not ledger.is_dropped("t0000")
    assert checkpoints.excess(["t0000"]) == 700
    checkpoints.drop(["t0000"])
    assert Ledger.load(ledger.folder).is_dropped("t0000")
    assert {path.name[:11] for path in (ledger.folder / "records" / "drops").iterdir()} == {
        "t0000-e0003", "t0000-e0009",
    }  # fmt: skip


def test_a_later_session_knows_the_sizes(ledger: Ledger) -> None:
    assert PausedCheckpoints(Ledger.load(ledger.folder), 0.0).excess(["t0001", "t0002"]) == 1024
