"""`repair`: damage is set aside and said, the rest stays, and what follows from the records is made again."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from rich.console import Console
from snapshots import snapshot
from tiny_data import tiny_dataset, tiny_model, tiny_recipe

from lsmha.models import CCT
from lsmha.training.checkpoints import checkpoint_files, load_state, save_state
from lsmha.training.saved import save_logits, save_model
from orchestrator.commands.repair import repair_run
from orchestrator.config.sweep import SweepConfig
from orchestrator.errors import UserError
from orchestrator.run_folder.content_hash import content_hash
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.ownership import owned
from orchestrator.run_folder.records import AnalysisRecord, Fingerprint, LatencyRecord, SuggestionBatch, TrialRecord
from orchestrator.run_folder.status_file import mark_stage
from orchestrator.run_folder.tables import write_tables
from orchestrator.terminal import QUIET, Terminal

# With one objective no plot is drawn, which would take most of the time here.
CONFIG = SweepConfig(
    name="a", space={"num_heads": [1, 2, 4]}, objectives=[{"metric": "val_accuracy", "direction": "maximize"}]
)
CPU = torch.device("cpu")
MADE_AGAIN = {"config.yaml", "study.journal", "summary.json", "status.json", "owner.json"}


def record(run_id: str, accuracy: float, latency: float) -> TrialRecord:
    return TrialRecord(
        id=run_id, trial=run_id[:5], key=content_hash({"run": run_id}), status="completed", point={"num_heads": 2},
        seed=0, params=10, macs=10, latency_ms=latency, epochs=1, seconds=1.0, val_accuracy=accuracy,
        test_accuracy=accuracy, curve=[{"epoch": 1}],
    )  # fmt: skip


@pytest.fixture(scope="module")
def model() -> CCT:
    return CCT(tiny_model())


@pytest.fixture
def ledger(tmp_path: Path, model: CCT) -> Ledger:
    """A run with two trials, two finalists of the first one, an analysis, and a trial that is under way."""
    ledger = Ledger.create(tmp_path / "run", CONFIG)
    ledger.begin_session(CONFIG, Fingerprint(data="d", recipe_version=1))
    ledger.add(SuggestionBatch(0, [{"num_heads": heads} for heads in (1, 2, 4)], 0, 0.0))
    ledger.add(LatencyRecord("abc", "1" * 64, [{"architecture": "abc", "latency_ms": 1.0}]))
    for number, (accuracy, latency) in enumerate([(0.9, 2.0), (0.8, 1.0)]):
        ledger.add(record(f"t000{number}", accuracy, latency))
    dataset = tiny_dataset()
    for seed in (0, 1):
        folder = ledger.finalist_folder(f"t0000-s{seed}")
        save_model(model, folder, dataset=dataset, train_config=tiny_recipe())
        for split in ("val", "test"):
            save_logits(model, folder, split, dataset=dataset, device=CPU)
        ledger.add(record(f"t0000-s{seed}", 0.9, 2.0))
    ledger.add(AnalysisRecord("t0000-s0", "2" * 64, [{"block": 0, "snr": 1.5}]))
    for epoch in (1, 2):
        save_state({"epoch": epoch}, ledger.checkpoint_path("t0002"))
    write_tables(ledger)
    mark_stage(ledger.folder, "complete")
    return ledger


def repaired(folder: Path) -> list[str]:
    """The lines that `repair` prints."""
    console = Console(width=60)
    with console.capture() as captured:
        repair_run(folder, Terminal(console))
    return captured.get().splitlines()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def kept(folder: Path) -> dict[Path, bytes | None]:
    """What repair must leave alone."""
    return {
        path: content
        for path, content in snapshot(folder).items()
        if content is not None and path.name not in MADE_AGAIN and path.suffix != ".parquet"
    }


def test_an_intact_run(ledger: Ledger) -> None:
    before = kept(ledger.folder)
    assert repaired(ledger.folder) == [
        "2 trials, 2 finalist runs and 1 analyses are recorded",
        "config.yaml, tables, study, plot and summary are made again from them",
    ]
    assert kept(ledger.folder) == before
    assert json.loads((ledger.folder / "status.json").read_text())["stage"] == "complete"


def test_what_follows_from_the_records_is_made_again(ledger: Ledger) -> None:
    tables = {path: pd.read_parquet(path) for path in ledger.folder.glob("*.parquet")}
    assert {path.stem for path in tables} == {"trials", "front", "finalists", "latency", "curves", "analysis"}
    for path in tables:
        path.unlink()
    config = (ledger.folder / "config.yaml").read_text()
    (ledger.folder / "config.yaml").write_text("name: [")
    repaired(ledger.folder)
    for path, rows in tables.items():
        pd.testing.assert_frame_equal(pd.read_parquet(path), rows)
    assert (ledger.folder / "config.yaml").read_text() == config
    assert (ledger.folder / "study.journal").read_text().count("t000") == 2
    summary = json.loads((ledger.folder / "summary.json").read_text())
    assert summary["trials"] == {"completed": 2, "stopped": 0, "paused": 0, "failed": 0}


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        *(
            (kind, flip)
            for kind in ("trials", "finalists", "batches", "latency", "analyses", "fingerprint", "settings")
        ),
        ("trials", lambda path: path.write_bytes(b"")),
        ("trials", lambda path: os.truncate(path, 40)),
    ],
)
def test_a_damaged_record_is_set_aside(ledger: Ledger, kind: str, damage: Callable[[Path], None]) -> None:
    path = sorted((ledger.folder / "records" / kind).iterdir())[0]
    whole, before = path.read_bytes(), kept(ledger.folder)
    damage(path)
    broken = path.read_bytes()
    with pytest.raises(UserError, match=rf"{path.name}.*repair"):
        Ledger.load(ledger.folder)
    line, *_ = repaired(ledger.folder)
    place = path.relative_to(ledger.folder)
    assert line == f"set aside: {place} is damaged; what it held will be done again"
    aside = ledger.folder / "damaged" / place
    assert aside.read_bytes() == broken
    assert kept(ledger.folder) == {
        **{kept_path: content for kept_path, content in before.items() if kept_path != path},
        aside: broken,
    }
    assert json.loads((ledger.folder / "status.json").read_text())["stage"] == "interrupted"
    assert json.loads((ledger.folder / "summary.json").read_text())["complete"] is False
    # Done again, it is what it was.
    again = Ledger.load(ledger.folder)
    assert again.config == CONFIG
    path.write_bytes(whole)
    assert Ledger.load(ledger.folder).trials == ledger.trials
    again = Ledger.load(ledger.folder)
    assert (again.batches, again.fingerprint, again.analyses) == (ledger.batches, ledger.fingerprint, ledger.analyses)


def test_a_set_aside_trial_is_recorded_again(ledger: Ledger) -> None:
    trial = ledger.trials[0]
    flip(ledger.record_path(trial))
    repaired(ledger.folder)
    again = Ledger.load(ledger.folder)
    assert again.tried(trial.id) is None
    assert pd.read_parquet(ledger.folder / "trials.parquet")["id"].to_list() == ["t0001"]
    assert pd.read_parquet(ledger.folder / "front.parquet")["id"].to_list() == ["t0001"]
    again.add(trial)
    assert Ledger.load(ledger.folder).trials == ledger.trials
    assert repaired(ledger.folder)[0].startswith("2 trials")


@pytest.mark.parametrize(
    ("name", "damage", "word"),
    [
        ("model.safetensors", flip, "damaged"),
        ("model.safetensors", lambda path: os.truncate(path, path.stat().st_size - 9), "damaged"),
        ("val_logits.safetensors", flip, "damaged"),
        ("test_logits.safetensors", Path.unlink, "missing"),
        ("config.json", Path.unlink, "missing"),
    ],
)
def test_a_finalist_with_damaged_files_will_be_trained_again(
    ledger: Ledger, name: str, damage: Callable[[Path], Any], word: str
) -> None:
    damage(ledger.finalist_folder("t0000-s1") / name)
    line, *_ = repaired(ledger.folder)
    assert line == f"set aside: the record of finalist t0000-s1, which will be trained again: {name} is {word}"
    assert [record.id for record in Ledger.load(ledger.folder).finalists] == ["t0000-s0"]
    assert [path.parent.name for path in (ledger.folder / "damaged").rglob("t0000-s1-*.json")] == ["finalists"]


@pytest.mark.parametrize("length", [0, 8])
def test_a_finalist_whose_weights_are_all_but_gone(ledger: Ledger, length: int) -> None:
    os.truncate(ledger.finalist_folder("t0000-s1") / "model.safetensors", length)
    assert "t0000-s1" in repaired(ledger.folder)[0]


def test_a_damaged_checkpoint_leaves_the_one_before(ledger: Ledger) -> None:
    newest, previous = checkpoint_files(ledger.checkpoint_path("t0002"))
    flip(newest)
    line, *_ = repaired(ledger.folder)
    assert line.startswith("set aside: checkpoints/t0002.pt is damaged")
    assert (newest.exists(), previous.exists()) == (False, True)
    assert load_state(newest, map_location=CPU).state == {"epoch": 1}


def test_a_damaged_table_is_made_again(ledger: Ledger) -> None:
    whole = pd.read_parquet(ledger.folder / "trials.parquet")
    flip(ledger.folder / "trials.parquet")
    assert repaired(ledger.folder)[0] == "damaged: trials.parquet, which is made again"
    pd.testing.assert_frame_equal(pd.read_parquet(ledger.folder / "trials.parquet"), whole)
    assert (ledger.folder / "damaged" / "trials.parquet").is_file()


def test_half_written_files_are_removed(ledger: Ledger) -> None:
    before = kept(ledger.folder)
    places = [
        "records/trials/.t0009-0123456789ab.77.json",
        "finalists/t0000-s0/.model.77.safetensors",
        ".trials.77.parquet",
    ]
    for place in places:
        (ledger.folder / place).write_bytes(b"half")
    lines = repaired(ledger.folder)
    assert sorted(lines[:-2]) == sorted(
        f"removed: {place}, half written by a process that was killed" for place in places
    )
    assert kept(ledger.folder) == before


def test_a_second_repair_finds_nothing(ledger: Ledger) -> None:
    flip(sorted((ledger.folder / "records" / "batches").iterdir())[0])
    flip(ledger.finalist_folder("t0000-s0") / "test_logits.safetensors")
    assert len(repaired(ledger.folder)) == 4
    before = kept(ledger.folder)
    assert len(repaired(ledger.folder)) == 2
    assert kept(ledger.folder) == before


def test_a_run_in_use_and_what_is_no_run_are_left_alone(ledger: Ledger, tmp_path: Path) -> None:
    flip(sorted((ledger.folder / "records" / "trials").iterdir())[0])
    with owned(ledger.folder):
        before = snapshot(ledger.folder)
        with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
            repair_run(ledger.folder, QUIET)
        assert snapshot(ledger.folder) == before
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="RUN: must be the folder of a run"):
        repair_run(tmp_path / "other", QUIET)
    assert list((tmp_path / "other").iterdir()) == []
