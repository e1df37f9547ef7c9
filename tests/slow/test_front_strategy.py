"""Sweeps whose trials pause and go on as a strategy decides: whole, killed anywhere, over ranks, with more to spend."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from running_sweep import Sweep, assert_refused, assert_study_holds, own_processes, records, table

from lsmha.io.checksums import read_checked

EPOCHS = 9
GRID = 26 * EPOCHS
SECTIONS: dict[str, Any] = {
    "train": {"epochs": EPOCHS, "batch_size": 20, "precision": "fp32", "warmup_epochs": 0},
    "space": {"num_heads": [1, 2, 4, 8, 16], "depth": [1, 2, 3], "num_conv_blocks": [0, 1]},
    "search": {"strategy": "front", "max_epochs": 80, "min_gain": 0.0},
    "analysis": {"enabled": False},
    "committees": {"enabled": False},
}


def decided(run: Path) -> list[Any]:
    """All decisions, but for the time that they took."""
    found = [record.content for _, record in sorted(records(run, "decisions").items())]
    return [{name: value for name, value in decision.items() if name != "elapsed_s"} for decision in found]


def written(run: Path) -> int:
    """Records so far of what was decided on, and of what has come to its rung."""
    return len(records(run, "decisions")) + len(records(run, "pauses"))


def trained(run: Path, name: str, *columns: str) -> list[list[Any]]:
    return [[row[column] for column in columns] for row in table(run, name)]


def assert_front_holds(run: Path, *, epochs: int = EPOCHS) -> None:
    """What pauses is told from what was trained to its end, everywhere."""
    trials = table(run, "trials")
    rungs = (1, 3, epochs)
    assert {row["status"] for row in trials} <= {"completed", "paused"}
    for row in trials:
        curve = [point["epoch"] for point in table(run, "curves") if point["id"] == row["id"]]
        assert curve == list(range(1, row["epochs"] + 1))
        assert row["epochs"] in rungs
        assert (row["status"] == "completed") == (row["epochs"] == epochs)
    reached = {row["id"]: row["epochs"] for row in trials}
    for decision in decided(run):
        for segment in decision["segments"]:
            assert segment["to_epoch"] <= reached[segment["trial"]]
    assert {row["status"] for row in table(run, "front")} == {"completed"}
    paused = {row["id"] for row in trials if row["status"] == "paused"}
    kept = {path.name.partition(".")[0] for path in (run / "checkpoints").glob("[!.]*")}
    assert kept == paused
    for path in (run / "checkpoints").glob("[!.]*"):
        read_checked(path)
    assert_study_holds(run)


@pytest.fixture(scope="module")
def measured(address: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed as soon as latency was measured, on which all decisions depend."""
    sweep = Sweep(tmp_path_factory.mktemp("measured"), address, **SECTIONS)
    session = sweep.start()
    session.wait_until(lambda: records(sweep.run, "decisions") if (sweep.run / "records").exists() else None)
    session.process.kill()
    session.wait()
    for kind in ("decisions", "pauses", "trials"):
        shutil.rmtree(sweep.run / "records" / kind, ignore_errors=True)
    for path in (sweep.run / "checkpoints").iterdir():
        path.unlink()
    return sweep.run


@pytest.fixture(scope="module")
def whole(address: str, measured: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    sweep = Sweep(tmp_path_factory.mktemp("whole"), address, **SECTIONS)
    sweep.copy_of(measured)
    sweep.complete(*sweep.again("resume"))
    return sweep.run


def test_trials_pause_and_go_on(whole: Path) -> None:
    assert_front_holds(whole)
    decisions = decided(whole)
    assert [segment["why"] for segment in decisions[0]["segments"]] == ["screen"] * 16
    assert [segment["why"] for segment in decisions[1]["segments"]] == ["anchor"] * 3
    spent = sum(s["to_epoch"] - s["from_epoch"] for decision in decisions for s in decision["segments"])
    assert 60 < spent <= 80
    assert spent == sum(row["epochs"] for row in table(whole, "trials"))
    gained = [row for row in table(whole, "trials") if row["why"] == "gain"]
    assert gained
    assert all(0 < row["predicted"] < 1 and row["predicted_sd"] > 0 for row in gained)


def test_it_says_what_it_will_spend_and_has_spent(address: str, whole: Path, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, address, **SECTIONS)
    plan = sweep.complete("run", sweep.spec, "--out", sweep.run, "--dry-run")
    assert f"trials that pause after 1, 3 of 9 epochs; 80 epochs at most, 34.2% of the grid's {GRID}" in plan
    assert "  screen: 16 configurations, to epoch 1: 16 epochs" in plan
    assert "  anchors: 3 of them, to epoch 9: 24 epochs" in plan
    assert "  then by expected gain, 1 or 2 or 6 epochs at a time: 40 epochs at most" in plan
    little = sweep.do("run", sweep.spec, "--out", sweep.run, "--set", "search.max_epochs=39")
    assert_refused(little, 2, "search.max_epochs: must be at least 40 for 26 configurations of 9 epochs", "39")
    assert not sweep.run.exists()
    paused = sum(row["status"] == "paused" for row in table(whole, "trials"))
    status = sweep.complete("status", whole)
    assert f"trials: {len(table(whole, 'trials')) - paused} completed, {paused} paused, 0 failed after" in status


def test_more_to_spend_goes_on_where_it_was(address: str, whole: Path, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, address, **SECTIONS)
    sweep.copy_of(whole)
    assert_refused(sweep.do("resume", sweep.run, "--set", "search.max_epochs=70"), 2, "search.max_epochs", "70")
    said = sweep.complete("resume", sweep.run, "--set", "search.max_epochs=110")
    assert decided(sweep.run)[: len(decided(whole))] == decided(whole)
    assert len(decided(sweep.run)) > len(decided(whole))
    assert_front_holds(sweep.run)
    assert f"of the grid's {GRID}" in said
    assert "completed. Last result" not in said, "Ray Tune speaks for itself"
    before = {row["id"]: row for row in table(whole, "trials")}
    went_on = [
        row for row in table(sweep.run, "trials") if row["id"] in before and row["epochs"] > before[row["id"]]["epochs"]
    ]
    assert went_on


def test_a_finalist_asked_for_later_trains_to_its_end(address: str, whole: Path, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, address, **SECTIONS)
    sweep.copy_of(whole)
    paused = next(row for row in table(whole, "trials") if row["status"] == "paused")
    point = {name: int(paused[name]) for name in SECTIONS["space"] if paused[name] is not None}
    sweep.complete("resume", sweep.run, "--set", f"finalists.include=[{point}]")
    *before, asked = decided(sweep.run)
    assert before == decided(whole)
    assert [(s["trial"], s["from_epoch"], s["to_epoch"], s["why"]) for s in asked["segments"]] == [
        (paused["id"], paused["epochs"], EPOCHS, "asked")
    ]
    assert_front_holds(sweep.run)
    assert {row["trial"] for row in table(sweep.run, "finalists")} == {paused["id"]}


def test_kills_anywhere_change_nothing(address: str, measured: Path, whole: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    sweep = Sweep(tmp_path, address, **SECTIONS)
    sweep.copy_of(measured)
    for kill in range(4):
        session = sweep.start(*sweep.again("resume"))
        target = written(sweep.run) + rng.randrange(1, 8)
        session.wait_until(partial(lambda s, n: written(sweep.run) >= n or not s.process.is_alive(), session, target))
        time.sleep(rng.random() * 0.3)
        if session.process.is_alive():
            os.kill(session.process.pid or 0, signal.SIGKILL if kill % 3 else signal.SIGINT)
        session.wait()
    sweep.complete(*sweep.again("resume"))
    assert decided(sweep.run) == decided(whole)
    for name, columns in (
        ("trials", ("id", "epochs", "status", "val_accuracy")),
        ("curves", ("id", "epoch", "val_loss")),
    ):
        assert trained(sweep.run, name, *columns) == trained(whole, name, *columns)
    assert_front_holds(sweep.run)


def test_lost_decisions_and_checkpoints_are_made_up_for(address: str, whole: Path, tmp_path: Path) -> None:
    sweep = Sweep(tmp_path, address, **SECTIONS)
    sweep.copy_of(whole)
    last = sorted((sweep.run / "records" / "decisions").glob("*.json"))[-3]
    last.write_bytes(last.read_bytes()[:-20])
    paused = sorted((sweep.run / "checkpoints").glob("[!.]*"))
    for path in paused:
        path.write_bytes(path.read_bytes()[:-20])
    assert_refused(sweep.do("resume", sweep.run), 2, "repair")
    said = sweep.complete("repair", sweep.run)
    assert f"records/decisions/{last.name}" in said
    sweep.complete("resume", sweep.run, "--set", "search.max_epochs=120")
    ids = [row["id"] for row in table(sweep.run, "trials")]
    assert len(set(ids)) == len(ids)
    for row in table(sweep.run, "trials"):
        curve = [point["epoch"] for point in table(sweep.run, "curves") if point["id"] == row["id"]]
        assert curve == list(range(1, row["epochs"] + 1))
    before = {row["id"]: row for row in table(whole, "trials")}
    completed = [row for row in table(sweep.run, "trials") if row["status"] == "completed"]
    assert {row["id"] for row in completed} > {row["id"] for row in before.values() if row["status"] == "completed"}


def test_dropped_checkpoints_cost_epochs_and_change_nothing(
    address: str, measured: Path, whole: Path, tmp_path: Path
) -> None:
    sweep = Sweep(tmp_path, address, **SECTIONS)
    sweep.copy_of(measured)
    said = sweep.complete("resume", sweep.run, "--set", "search.paused_gib=0")
    assert decided(sweep.run) == decided(whole)
    columns = ("id", "epochs", "status", "val_accuracy", "val_loss")
    assert trained(sweep.run, "trials", *columns) == trained(whole, "trials", *columns)
    assert trained(sweep.run, "curves", "id", "epoch") == trained(whole, "curves", "id", "epoch")
    paused = {row["id"] for row in table(sweep.run, "trials") if row["status"] == "paused"}
    assert f"{len(paused)} checkpoints of trials that pause were dropped (search.paused_gib)" in said
    assert list((sweep.run / "checkpoints").glob("[!.]*")) == []
    dropped = {name.partition("-")[0] for name in records(sweep.run, "drops")}
    assert dropped > paused, "others began anew and are at their end"
    repaired = sweep.complete("repair", sweep.run)
    assert all(f"missing: the checkpoint of {trial}, which pauses, was dropped" in repaired for trial in paused)


def test_ranks_pause_and_go_on(address: str, tmp_path: Path) -> None:
    sections = {
        **SECTIONS,
        "resources": {"workers_per_trial": 2, "cpus_per_trial": 2},
        "search": {"strategy": "front", "max_epochs": 60, "min_gain": 0.0},
    }
    sweep = Sweep(tmp_path, address, **sections)
    session = sweep.start()
    seen: set[int] = set()

    def ended() -> bool:
        seen.update(own_processes("RayTrainWorker"))
        return not session.process.is_alive()

    session.wait_until(ended)
    assert session.wait().code == 0, session.output()
    assert_front_holds(sweep.run)
    assert len(seen) == 2


def test_successive_halving_promotes_by_rank(address: str, tmp_path: Path) -> None:
    search = {"strategy": "moasha", "reduction_factor": 3, "max_epochs": 70}
    sweep = Sweep(tmp_path, address, **{**SECTIONS, "search": search})
    sweep.complete()
    assert_front_holds(sweep.run)
    segments = [segment for decision in decided(sweep.run) for segment in decision["segments"]]
    assert {segment["why"] for segment in segments} == {"rank"}
    assert {(segment["from_epoch"], segment["to_epoch"]) for segment in segments} == {(0, 1), (1, 3), (3, 9)}
