"""The run folder: records that survive, a front without failures, and tables with their columns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.errors import UserError
from orchestrator.ledger import Ledger
from orchestrator.records import TrialRecord, finalist_id, trial_id
from orchestrator.sweep_config import SweepConfig

CONFIG = SweepConfig(name="a", space={"num_heads": [1, 2, 4], "num_conv_blocks": [0, 7], "learning_rate": [1e-3]})
LATENCY = {"architecture": "abc", "batch_size": 1, "latency_ms": 0.5}
TABLES = ("trials", "front", "finalists", "latency", "curves")


def trial(number: int, accuracy: float, latency: float, *, heads: int | None = 1, **fields: Any) -> TrialRecord:
    values: dict[str, Any] = {
        "id": trial_id(number),
        "trial": trial_id(number),
        "status": "completed",
        "point": {"num_heads": heads, "num_conv_blocks": 0 if heads else 7, "learning_rate": 1e-3},
        "seed": 0,
        "params": 1000,
        "macs": 2_000_000_000_000,
        "latency_ms": latency,
        "epochs": 2,
        "seconds": 1.5,
        "val_accuracy": accuracy,
        "val_loss": 1.0,
        "curve": [{"epoch": epoch, "val_accuracy": accuracy} for epoch in (1, 2)],
    }
    return TrialRecord(**values | fields)


def failed(number: int, **fields: Any) -> TrialRecord:
    error = {"status": "failed", "val_accuracy": None, "val_loss": None, "curve": [], "error": "DivergenceError: nan"}
    return replace(trial(number, 0.0, 0.001), **error | fields)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Three completed trials, of which two are on the front, a failed one, and a finalist."""
    ledger = Ledger.create(tmp_path / "run", CONFIG)
    for record in (trial(0, 0.9, 3.0), trial(1, 0.8, 1.0, heads=None), trial(2, 0.7, 2.0), failed(3)):
        ledger.add_trial(record)
    ledger.add_finalist(replace(trial(0, 0.95, 3.0, seed=1, test_accuracy=0.94), id=finalist_id("t0000", 1)))
    ledger.add_latency("abc", [LATENCY])
    return ledger


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UserError, match="--out"):
        Ledger.create(tmp_path, CONFIG)
    with pytest.raises(UserError, match="--out"):
        Ledger.create(tmp_path / "mine", CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_empty_folder_will_do(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert Ledger.create(tmp_path / "run", CONFIG).front() == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--out"):
        Ledger.create(tmp_path / "file" / "run", CONFIG)


def test_records_survive(ledger: Ledger) -> None:
    loaded = Ledger.load(ledger.folder)
    assert loaded.config == CONFIG
    assert loaded.trials == ledger.trials
    assert loaded.finalists == ledger.finalists
    assert loaded.latencies == ledger.latencies
    assert loaded.front() == ledger.front()


def test_a_record_that_is_damaged_is_named(ledger: Ledger) -> None:
    (ledger.folder / "records" / "trials" / "t0002.json").write_text("{")
    with pytest.raises(UserError, match=r"t0002\.json"):
        Ledger.load(ledger.folder)


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="RUN"):
        Ledger.load(tmp_path / "nothing")


def test_front_has_no_failed_trial(ledger: Ledger) -> None:
    assert [record.id for record in ledger.front()] == ["t0000", "t0001"]
    # A failed trial stays out even where it has every metric.
    ledger.add_trial(failed(4, val_accuracy=1.0))
    assert [record.id for record in ledger.front()] == ["t0000", "t0001"]


def test_front_is_sorted_by_the_first_objective(tmp_path: Path) -> None:
    objectives = (
        {"metric": "latency_ms", "direction": "minimize"},
        {"metric": "val_accuracy", "direction": "maximize"},
    )
    config = SweepConfig(name="a", space=CONFIG.space, objectives=objectives)
    ledger = Ledger.create(tmp_path / "run", config)
    for record in (trial(0, 0.9, 3.0), trial(1, 0.8, 1.0), trial(2, 0.85, 2.0)):
        ledger.add_trial(record)
    assert [record.id for record in ledger.front()] == ["t0001", "t0002", "t0000"]


def test_an_ended_run_has_no_checkpoint(ledger: Ledger) -> None:
    checkpoint = ledger.checkpoint_path("t0007")
    checkpoint.parent.mkdir(exist_ok=True)
    checkpoint.touch()
    ledger.add_trial(trial(7, 0.5, 5.0))
    assert not checkpoint.exists()


def test_columns_of_the_tables(ledger: Ledger) -> None:
    ledger.write_tables()
    tables = {name: pd.read_parquet(ledger.folder / f"{name}.parquet") for name in TABLES}
    searched = set(CONFIG.space)
    assert {
        "id", "status", "val_accuracy", "latency_ms", "params", "macs", "epochs", "seconds", "seed", "error", *searched
    } <= set(tables["trials"])  # fmt: skip
    assert tables["trials"]["id"].to_list() == ["t0000", "t0001", "t0002", "t0003"]
    assert tables["trials"].set_index("id").loc["t0003", "error"] == "DivergenceError: nan"
    assert list(tables["front"]) == list(tables["trials"])
    assert tables["front"]["id"].to_list() == ["t0000", "t0001"]
    assert tables["finalists"][["id", "trial", "seed", "test_accuracy"]].to_dict("records") == [
        {"id": "t0000-s1", "trial": "t0000", "seed": 1, "test_accuracy": 0.94}
    ]
    assert tables["latency"].to_dict("records") == [LATENCY]
    curves = tables["curves"].groupby("id")["epoch"].apply(list).to_dict()
    assert curves == {name: [1, 2] for name in ("t0000", "t0001", "t0002", "t0000-s1")}


def test_whole_numbers_stay_whole_beside_none(ledger: Ledger) -> None:
    ledger.write_tables()
    table = pq.read_table(ledger.folder / "trials.parquet")
    assert table.schema.field("num_heads").type == pa.int64()
    assert table["num_heads"].to_pylist() == [1, None, 1, 1]
    assert table.schema.field("macs").type == pa.int64()


def test_an_empty_run_has_readable_tables(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "run", CONFIG)
    ledger.write_tables()
    for name in TABLES:
        assert len(pd.read_parquet(ledger.folder / f"{name}.parquet")) == 0


def test_no_temporary_files_stay(ledger: Ledger) -> None:
    ledger.write_tables()
    assert [path for path in ledger.folder.rglob(".*") if path.is_file()] == []


def test_a_record_that_was_being_written_is_none(ledger: Ledger) -> None:
    (ledger.folder / "records" / "trials" / ".t0009.123.json").write_text('{"id": "t00')
    assert [record.id for record in Ledger.load(ledger.folder).trials] == [record.id for record in ledger.trials]


def test_what_follows_the_finalists_survives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger.create(tmp_path / "run", CONFIG)
    ledger.add_analysis("t0000-s0", [{"block": 0, "snr": 1.5}, {"block": 1, "snr": None}])
    ledger.add_analysis("t0001-s0", [], error="ValueError: no")
    ledger.add_pruning("t0000-s0-andc-none-r0", {"id": "t0000-s0", "mask": "none"})
    ledger.add_pruning("t0000-s0-andc-none-r0", {"id": "t0000-s0", "mask": "none", "kept": 1.0})
    ledger.set_committees([{"kind": "group", "accuracy": 0.5}])
    monkeypatch.chdir(tmp_path)
    again = Ledger.load(Path("run"))
    assert again.folder.is_absolute()  # workers run in folders of their own
    assert (again.analyses, again.prunings, again.committees) == (ledger.analyses, ledger.prunings, ledger.committees)
    again.write_tables()
    analysis = pd.read_parquet(tmp_path / "run" / "analysis.parquet")
    assert analysis["id"].tolist() == ["t0000-s0", "t0000-s0"]
    assert analysis["snr"].isna().tolist() == [False, True]
    assert pd.read_parquet(tmp_path / "run" / "pruning.parquet")["kept"].tolist() == [1.0]
    assert pd.read_parquet(tmp_path / "run" / "committees.parquet")["accuracy"].tolist() == [0.5]


def test_records_are_strict_json(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "run", CONFIG)
    with pytest.raises(ValueError, match="JSON"):
        ledger.add_analysis("t0000-s0", [{"snr": float("inf")}])
    assert Ledger.load(tmp_path / "run").analyses == {}
