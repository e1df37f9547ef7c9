"""Sweeps whose bad trials end early, alone, over ranks, and over a break."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from running_sweep import Sweep, assert_refused, assert_study_holds, own_processes, table

EPOCHS = 9
RATES = [0.003, 1e-7, 0.002, 2e-7, 0.001, 3e-7]
"""One that learns next to nothing comes after one that learns."""
SECTIONS: dict[str, Any] = {
    "train": {"epochs": EPOCHS, "batch_size": 20, "precision": "fp32", "warmup_epochs": 0},
    "objectives": [{"metric": "val_accuracy", "direction": "maximize"}],
    "space": {"learning_rate": RATES},
    "search": {
        "points_to_evaluate": [{"learning_rate": rate} for rate in RATES],
        "sampler": "grid",
        "num_trials": 6,
        "suggestion_batch": 2,
        "scheduler": "asha",
        "reduction_factor": 3,
        "grace_epochs": 3,
    },
    "finalists": {"max_finalists": 1, "seeds": [0, 1]},
    "resources": {"max_concurrent_trials": 1},
    "analysis": {"enabled": False},
}


def assert_bad_ones_ended_early(run: Path) -> None:
    trials = table(run, "trials")
    good = {row["id"] for row in trials if row["learning_rate"] > 1e-5}
    # The first has none to compare with; those that learn compete with one another.
    assert trials[0]["status"] == "completed"
    assert {row["id"] for row in trials if row["status"] == "stopped"} >= {row["id"] for row in trials} - good
    epochs = {row["id"]: row["epochs"] for row in trials}
    for row in trials:
        curve = [point["epoch"] for point in table(run, "curves") if point["id"] == row["id"]]
        assert curve == list(range(1, epochs[row["id"]] + 1))
        assert row["error"] is None
        if row["status"] == "stopped":
            assert row["epochs"] == 3
    front = table(run, "front")
    assert front
    assert {row["status"] for row in front} == {"completed"}
    assert [row["epochs"] for row in table(run, "finalists")] == [EPOCHS, EPOCHS]
    assert list((run / "checkpoints").glob("[!.]*")) == []
    assert_study_holds(run)


def test_bad_trials_end_early_and_count_as_stopped(address: str, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, address, **SECTIONS)
    said = sweep.complete()
    assert "stopped after epoch 3, val_accuracy=" in said
    assert_bad_ones_ended_early(sweep.run)
    status = sweep.complete("status", sweep.run)
    stopped = sum(row["status"] == "stopped" for row in table(sweep.run, "trials"))
    assert f"trials: {6 - stopped} completed, {stopped} stopped, 0 failed" in status


def test_a_killed_sweep_stops_the_same_ones(address: str, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = Sweep(tmp_path / "whole", address, **SECTIONS)
    whole.complete()
    sweep = Sweep(tmp_path, address, **SECTIONS)
    session = sweep.start()
    session.wait_until(lambda: len(sweep.records()) == 2 and list((sweep.run / "checkpoints").glob("t0002.pt")))
    os.kill(session.process.pid, signal.SIGKILL)
    session.process.join()
    sweep.complete("resume", sweep.run)
    assert_bad_ones_ended_early(sweep.run)
    for kind in ("trials", "curves"):
        rows, expected = (table(folder, kind) for folder in (sweep.run, whole.run))
        names = ("id", "epochs", "status", "val_accuracy") if kind == "trials" else ("id", "epoch", "val_accuracy")
        assert [[row[name] for name in names] for row in rows] == [[row[name] for name in names] for row in expected]


def test_ranks_leave_a_stopped_trial_and_train_the_next(address: str, tmp_path: Path) -> None:
    ranks = {"workers_per_trial": 2, "cpus_per_trial": 2}
    sweep = Sweep(tmp_path, address, **{**SECTIONS, "resources": ranks})
    session = sweep.start()
    seen: set[int] = set()

    def ended() -> bool:
        seen.update(own_processes("RayTrainWorker"))
        return not session.process.is_alive()

    session.wait_until(ended)
    assert session.wait().code == 0, session.output()
    assert_bad_ones_ended_early(sweep.run)
    assert len(seen) == 2  # from the first trial to the last finalist


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_several_objectives_are_refused(address: str, tmp_path: Path, scheduler: str) -> None:
    both = [{"metric": "val_accuracy", "direction": "maximize"}, {"metric": "params", "direction": "minimize"}]
    sweep = Sweep(tmp_path, address, **{**SECTIONS, "objectives": both, "search": {"scheduler": scheduler}})
    assert_refused(sweep.do(), 2, "search.scheduler: must be fifo", "val_accuracy and params", repr(scheduler))
    assert not sweep.run.exists()
