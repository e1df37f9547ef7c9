"""The run folder: records that survive, a front without failures, and tables with their columns."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sample_records import committee_size, pruned_network
from snapshots import snapshot

from orchestrator.config.sweep import SweepConfig
from orchestrator.errors import Interrupted, UserError
from orchestrator.failures import Failure
from orchestrator.interrupts import interrupts_as_exceptions
from orchestrator.run_folder.content_hash import content_hash
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.record_files import write_record
from orchestrator.run_folder.records import (
    AnalysisRecord,
    CommitteesRecord,
    Fingerprint,
    LatencyRecord,
    PruningRecord,
    SuggestionBatch,
    TrialRecord,
    finalist_id,
    trial_id,
)
from orchestrator.run_folder.tables import write_tables

CONFIG = SweepConfig(name="a", space={"num_heads": [1, 2, 4], "num_conv_blocks": [0, 7], "learning_rate": [1e-3]})
LATENCY = {"architecture": "abc", "batch_size": 1, "latency_ms": 0.5}
FINGERPRINT = Fingerprint(data="d" * 64, recipe_version=1)
KEY, OTHER_KEY = content_hash({"work": 1}), content_hash({"work": 2})
TABLES = ("trials", "front", "finalists", "latency", "curves")


def trial(number: int, accuracy: float, latency: float, *, heads: int | None = 1, **fields: Any) -> TrialRecord:
    values: dict[str, Any] = {
        "id": trial_id(number),
        "trial": trial_id(number),
        "key": content_hash({"trial": number}),
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


def begun(folder: Path, config: SweepConfig = CONFIG) -> Ledger:
    """A run whose first session has just begun."""
    ledger = Ledger.create(folder, config)
    ledger.begin_session(config, FINGERPRINT)
    return ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Three completed trials, of which two are on the front, a failed one, and a finalist."""
    ledger = begun(tmp_path / "run")
    for record in (trial(0, 0.9, 3.0), trial(1, 0.8, 1.0, heads=None), trial(2, 0.7, 2.0), failed(3)):
        ledger.add(record)
    ledger.add(replace(trial(0, 0.95, 3.0, seed=1, test_accuracy=0.94), id=finalist_id("t0000", 1)))
    ledger.add(LatencyRecord("abc", KEY, [LATENCY]))
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


def test_a_record_that_is_written_when_a_signal_comes_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = begun(tmp_path / "run")

    def write_and_be_interrupted(*arguments: Any, **options: Any) -> None:
        write_record(*arguments, **options)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("orchestrator.run_folder.ledger.write_record", write_and_be_interrupted)
    with pytest.raises(Interrupted), interrupts_as_exceptions():
        ledger.add(trial(0, 0.9, 3.0))
    assert ledger.trials == Ledger.load(ledger.folder).trials == [trial(0, 0.9, 3.0)]


def test_a_record_that_is_damaged_is_named(ledger: Ledger) -> None:
    path = ledger.record_path(ledger.trials[2])
    path.write_text("{")
    with pytest.raises(UserError, match=rf"{path.name}.*lsmha-sweep repair"):
        Ledger.load(ledger.folder)
    damaged: list[Path] = []
    assert [record.id for record in Ledger.load(ledger.folder, on_damaged=damaged.append).trials] == [
        "t0000", "t0001", "t0003",
    ]  # fmt: skip
    assert damaged == [path]


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="RUN"):
        Ledger.load(tmp_path / "nothing")


def test_front_has_no_failed_trial(ledger: Ledger) -> None:
    assert [record.id for record in ledger.front()] == ["t0000", "t0001"]
    # A failed trial stays out even where it has every metric.
    ledger.add(failed(4, val_accuracy=1.0))
    assert [record.id for record in ledger.front()] == ["t0000", "t0001"]


def test_front_is_sorted_by_the_first_objective(tmp_path: Path) -> None:
    objectives = (
        {"metric": "latency_ms", "direction": "minimize"},
        {"metric": "val_accuracy", "direction": "maximize"},
    )
    config = SweepConfig(name="a", space=CONFIG.space, objectives=objectives)
    ledger = begun(tmp_path / "run", config)
    for record in (trial(0, 0.9, 3.0), trial(1, 0.8, 1.0), trial(2, 0.85, 2.0)):
        ledger.add(record)
    assert [record.id for record in ledger.front()] == ["t0001", "t0002", "t0000"]


def test_columns_of_the_tables(ledger: Ledger) -> None:
    write_tables(ledger)
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
    write_tables(ledger)
    table = pq.read_table(ledger.folder / "trials.parquet")
    assert table.schema.field("num_heads").type == pa.int64()
    assert table["num_heads"].to_pylist() == [1, None, 1, 1]
    assert table.schema.field("macs").type == pa.int64()


def test_an_empty_run_has_readable_tables(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "run", CONFIG)
    write_tables(ledger)
    for name in TABLES:
        assert len(pd.read_parquet(ledger.folder / f"{name}.parquet")) == 0


def test_no_temporary_files_stay(ledger: Ledger) -> None:
    write_tables(ledger)
    assert [path for path in ledger.folder.rglob(".*") if path.is_file()] == []


def test_a_record_that_was_being_written_is_none(ledger: Ledger) -> None:
    half = ledger.folder / "records" / "trials" / ".t0009-0123456789ab.123.json"
    half.write_text('{"name": "t00')
    again = Ledger.load(ledger.folder)
    assert again.trials == ledger.trials
    again.begin_session(CONFIG, FINGERPRINT)
    assert not half.exists()


def test_a_session_goes_on_with_what_the_one_before_recorded(ledger: Ledger) -> None:
    batches = [
        SuggestionBatch(0, [{"num_heads": 1}, {"num_heads": None}], 0, 0.0),
        SuggestionBatch(2, [{"num_heads": 4}], 0, 1.5),
    ]
    for batch in batches:
        ledger.add(batch)
    again = Ledger.load(ledger.folder)
    assert again.batches == batches
    assert again.fingerprint == FINGERPRINT
    bigger = CONFIG.model_copy(update={"search": CONFIG.search.model_copy(update={"num_trials": 99})})
    again.begin_session(bigger, FINGERPRINT)
    assert again.config == Ledger.load(ledger.folder).config == bigger


def test_settings_count_as_they_were_recorded(ledger: Ledger) -> None:
    (ledger.folder / "config.yaml").write_text("name: edited\nspace: {depth: [1]}\n")
    again = Ledger.load(ledger.folder)
    assert again.config == CONFIG
    again.write_config(again.config)
    for path in (ledger.folder / "records" / "settings").iterdir():
        path.unlink()
    assert Ledger.load(ledger.folder).config == CONFIG


def test_a_session_with_the_same_settings_records_nothing(ledger: Ledger) -> None:
    before = snapshot(ledger.folder)
    Ledger.load(ledger.folder).begin_session(CONFIG, FINGERPRINT)
    assert snapshot(ledger.folder) == before


def test_records_are_found_by_just_the_work_that_was_done(ledger: Ledger) -> None:
    (record,) = (trial for trial in ledger.trials if trial.id == "t0001")
    for some in (ledger, Ledger.load(ledger.folder)):
        assert some.tried("t0001") == some.ended("t0001", record.key) == record
        assert some.ended("t0001", OTHER_KEY) is None
        assert some.tried("t0001-s0") is None


def test_other_images_or_another_recipe_do_not_mix() -> None:
    FINGERPRINT.check(Fingerprint(FINGERPRINT.data, FINGERPRINT.recipe_version))
    with pytest.raises(UserError, match=r"data: must be .* \(digest dddddddddddd\), but got eeeeeeeeeeee"):
        FINGERPRINT.check(replace(FINGERPRINT, data="e" * 64))
    with pytest.raises(UserError, match="recipe 2, the run by 1"):
        FINGERPRINT.check(replace(FINGERPRINT, recipe_version=2))


def test_what_follows_the_finalists_survives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = begun(tmp_path / "run")
    ledger.add(AnalysisRecord("t0000-s0", KEY, [{"block": 0, "snr": 1.5}, {"block": 1, "snr": None}]))
    ledger.add(AnalysisRecord("t0001-s0", KEY, [], Failure("ValueError: no", "unexpected", "Traceback: ...")))
    for kept in (0.5, 1.0):
        ledger.add(PruningRecord("t0000-s0-andc-none-r0", KEY, pruned_network(kept_of_connections=kept)))
    ledger.add(CommitteesRecord(KEY, [committee_size(accuracy=0.5)]))
    monkeypatch.chdir(tmp_path)
    again = Ledger.load(Path("run"))
    assert again.folder.is_absolute()  # workers run in folders of their own
    assert (again.analyses, again.prunings, again.committees) == (ledger.analyses, ledger.prunings, ledger.committees)
    assert (again.analyses["t0001-s0"].completed, again.analyses["t0001-s0"].key) == (False, KEY)
    write_tables(again)
    analysis = pd.read_parquet(tmp_path / "run" / "analysis.parquet")
    assert analysis["id"].tolist() == ["t0000-s0", "t0000-s0"]
    assert analysis["snr"].isna().tolist() == [False, True]
    assert pd.read_parquet(tmp_path / "run" / "pruning.parquet")["kept_of_connections"].tolist() == [1.0]
    assert pd.read_parquet(tmp_path / "run" / "committees.parquet")["accuracy"].tolist() == [0.5]


@pytest.mark.parametrize("keys", [(KEY, OTHER_KEY), (OTHER_KEY, KEY)])
def test_the_latest_counts_whatever_its_file_is_called(tmp_path: Path, keys: tuple[str, str]) -> None:
    ledger = begun(tmp_path / "run")
    for number, key in enumerate([*keys, keys[0], keys[1], keys[0]]):  # an earlier setting, taken up again
        ledger.add(AnalysisRecord("t0000-s0", key, [{"number": number}]))
        ledger.add(CommitteesRecord(key, [committee_size(size=number)]))
        ledger.add(PruningRecord("t0000-s0-andc", key, pruned_network(seed=number)))
    again = Ledger.load(ledger.folder)
    assert again.analyses == {"t0000-s0": AnalysisRecord("t0000-s0", keys[0], [{"number": 4}])}
    assert again.committees == CommitteesRecord(keys[0], [committee_size(size=4)])
    assert again.prunings == {"t0000-s0-andc": PruningRecord("t0000-s0-andc", keys[0], pruned_network(seed=4))}


def test_records_are_strict_json(tmp_path: Path) -> None:
    ledger = begun(tmp_path / "run")
    with pytest.raises(ValueError, match="JSON"):
        ledger.add(AnalysisRecord("t0000-s0", KEY, [{"snr": float("inf")}]))
    assert ledger.analyses == Ledger.load(tmp_path / "run").analyses == {}
