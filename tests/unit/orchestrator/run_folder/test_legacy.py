"""What an earlier version wrote can be read: its records, tables, networks, checkpoints and settings."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from old_runs import old_run
from pandas.testing import assert_frame_equal
from rich.console import Console
from snapshots import snapshot

from lsmha.analysis.saved import load_fields
from lsmha.data import load_dataset, normalize
from lsmha.training import TrainState
from lsmha.training.saved import load_logits, load_model
from orchestrator.commands.repair import repair_run
from orchestrator.commands.status import show_status
from orchestrator.reporting.artifacts import write_artifacts
from orchestrator.reporting.tables import show_results
from orchestrator.run_folder.content_hash import architecture_hash, content_hash, training_hash
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.legacy import content_of_today, kind_of_today
from orchestrator.run_folder.record_files import read_record
from orchestrator.run_folder.records import Settings, TrialRecord
from orchestrator.search.build import build_space
from orchestrator.terminal import Terminal

CPU = torch.device("cpu")
TABLES = ("trials", "curves", "front", "finalists", "latency", "analysis", "committees", "pruning")
NEW_COLUMNS = {"failure", "why", "predicted", "predicted_sd"}
RENAMED_COLUMNS = {"num_unrecognised_labels": "num_unrecognized_labels", "sentinel_ms": "reference_ms"}


@pytest.fixture
def complete(tmp_path: Path) -> Path:
    return old_run("complete", tmp_path)


def printed(show: object, *arguments: object) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        show(*arguments, Terminal(console))  # type: ignore[operator]
    return captured.get()


def test_records(complete: Path) -> None:
    ledger = Ledger.load(complete)
    assert [(record.id, record.status) for record in ledger.trials] == [
        (f"t{number:04d}", "failed" if number in (1, 3, 6) else "completed") for number in range(7)
    ]
    assert [record.id for record in ledger.finalists] == ["t0000-s0", "t0000-s1", "t0004-s0", "t0004-s1"]
    assert {record.attention for record in ledger.finalists} == {"materialized", "none"}
    assert [(batch.first, len(batch.points), batch.enqueued) for batch in ledger.batches] == [(0, 4, 2), (4, 3, 0)]
    assert len(ledger.latencies) == 5
    assert [record.latency_ms > 0 for record in ledger.front_latencies.values()] == [True]
    assert {record.completed for record in ledger.analyses.values()} == {True}
    assert ledger.committees is not None
    assert {row.kind for row in ledger.committees.rows} == {"committee", "group", "size"}
    assert {record.network.mask for record in ledger.prunings.values()} == {"fields", "random", "none"}
    assert ledger.fingerprint is not None


def test_settings_have_the_names_of_today(complete: Path) -> None:
    config = Ledger.load(complete).config
    assert config.search.suggestion_batch == 2
    assert config.search.points_to_evaluate[0]["learning_rate"] == 1e30
    assert config.resources.max_stacked_seeds == 2
    assert config.model.attention == "materialized"


def test_hashes_of_what_was_run_are_the_same(complete: Path) -> None:
    """Otherwise a run that goes on would do it all again."""
    ledger = Ledger.load(complete)
    dataset = load_dataset(ledger.config.data)
    assert ledger.fingerprint is not None
    assert ledger.fingerprint.data == dataset.digest()
    space = build_space(ledger.config, dataset)
    for record in ledger.trials:
        model, recipe = space.build(record.point)
        assert record.key == training_hash(model, recipe, dataset.digest())
        assert record.architecture == architecture_hash(model)


def test_records_come_back_as_they_were(complete: Path) -> None:
    ledger = Ledger.load(complete)
    kept = [*ledger.trials, *ledger.finalists, *ledger.latencies.values(), *ledger.front_latencies.values(),
            *ledger.batches, *ledger.analyses.values(), *ledger.prunings.values(), ledger.committees]  # fmt: skip
    by_name = {(record.kind, record.name): record for record in kept if record is not None}
    for path in sorted((complete / "records").glob("*/*.json")):
        stored, kind = read_record(path), kind_of_today(path.parent.name)
        name = stored.name.replace("w", "b") if kind == "batches" else stored.name
        if (record := by_name.pop((kind, name), None)) is not None:
            before = content_of_today(stored.content)
            before.pop("recorded", None)
            now = {key: value for key, value in record.content().items() if key in before}
            assert now == before, path.name
            assert set(record.content()) - set(before) <= {*NEW_COLUMNS, "traceback"}
    assert not by_name


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_made_again_as_they_were(complete: Path, name: str) -> None:
    before = pd.read_parquet(complete / f"{name}.parquet").rename(columns=RENAMED_COLUMNS)
    for column in before.columns.intersection(["attention"]):
        before[column] = before[column].replace({"materialised": "materialized"})
    write_artifacts(Ledger.load(complete))
    now = pd.read_parquet(complete / f"{name}.parquet")
    assert set(now.columns) - set(before.columns) <= NEW_COLUMNS
    assert_frame_equal(now[list(before.columns)], before)


def test_networks_give_the_answers_that_were_stored(complete: Path) -> None:
    ledger = Ledger.load(complete)
    dataset = load_dataset(ledger.config.data)
    for record in ledger.finalists:
        folder = ledger.finalist_folder(record.id)
        stored = load_logits(folder, "test")
        assert stored.fingerprint == dataset.fingerprint
        accuracy = (stored.logits.argmax(1) == stored.labels).double().mean().item()
        assert accuracy == pytest.approx(record.test_accuracy)
        with torch.no_grad():
            logits = load_model(folder)(normalize(dataset.test.images[:32], dataset.mean, dataset.std))
        torch.testing.assert_close(logits, stored.logits[:32], rtol=1e-4, atol=1e-4)


def test_fields_are_there(complete: Path) -> None:
    ledger = Ledger.load(complete)
    for record in ledger.finalists:
        for fields in load_fields(ledger.analysis_folder(record.id)).values():
            assert torch.isfinite(fields).all()


def test_a_checkpoint_goes_on(tmp_path: Path) -> None:
    ledger = Ledger.load(old_run("broken-off", tmp_path))
    dataset = load_dataset(ledger.config.data)
    model, recipe = build_space(ledger.config, dataset).build(ledger.batches[0].points[2])
    state = TrainState(model, recipe, dataset, device=CPU)
    assert state.load(ledger.checkpoint_path("t0002")) == []
    assert 0 < state.epoch < recipe.epochs
    assert [metrics.epoch for metrics in state.history] == list(range(1, state.epoch + 1))


def test_repair_finds_nothing(complete: Path) -> None:
    before = {path: content for path, content in snapshot(complete).items() if "records" in path.parts}
    said = printed(repair_run, complete)
    assert "7 trials, 4 finalist runs and 4 analyses are recorded" in said
    assert {path: content for path, content in snapshot(complete).items() if "records" in path.parts} == before


def test_status_and_front(complete: Path) -> None:
    said = printed(show_status, complete)
    assert "trials: 4 completed, 3 failed of at most 7" in said
    assert "DivergenceError: training diverged in epoch 1 of 6" in said
    assert "t0004" in printed(show_results, Ledger.load(complete))


def test_what_is_added_is_beside_what_was_there(complete: Path) -> None:
    ledger = Ledger.load(complete)
    (last,) = ledger.trials[-1:]
    values = {**vars(last), "id": "t0007", "trial": "t0007", "key": content_hash({"new": 1}), "failure": "diverged"}
    ledger.add(TrialRecord(**values))
    ledger.add(Settings(ledger.config.model_copy(update={"seed": 1})))
    again = Ledger.load(complete)
    assert [record.id for record in again.trials][-2:] == ["t0006", "t0007"]
    assert again.trials[-1].failure == "diverged"
    assert again.config.seed == 1
