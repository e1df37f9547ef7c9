"""What a run reports: front, finalists over seeds, hypervolume, plot, summary."""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from orchestrator.config.sweep import SweepConfig
from orchestrator.reporting.plots import plot_front
from orchestrator.reporting.summary import finalist_summary, front_hypervolume, write_summary
from orchestrator.reporting.tables import finalists_table, front_table
from orchestrator.run_folder.content_hash import content_hash
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import Fingerprint, LatencyRecord, TrialRecord, finalist_id, trial_id
from orchestrator.stages.finalists import spread_along

CONFIG = SweepConfig(name="a", space={"num_heads": [1, 2, 4], "depth": [7]})


def record(run_id: str, accuracy: float | None, latency: float, **fields: Any) -> TrialRecord:
    values: dict[str, Any] = {
        "id": run_id,
        "trial": run_id.split("-")[0],
        "key": content_hash({"run": run_id}),
        "status": "failed" if accuracy is None else "completed",
        "point": {"num_heads": 2, "depth": 7},
        "seed": 0,
        "params": 12345,
        "macs": 10,
        "latency_ms": latency,
        "epochs": 3,
        "seconds": 1.0,
        "val_accuracy": accuracy,
    }
    return TrialRecord(**values | fields)


def begun(folder: Path, config: SweepConfig) -> Ledger:
    ledger = Ledger.create(folder, config)
    ledger.begin_session(config, Fingerprint(data="d", recipe_version=1))
    return ledger


def ledger_of(folder: Path, results: list[tuple[float | None, float]], **settings: Any) -> Ledger:
    ledger = begun(folder, CONFIG.model_copy(update=settings))
    for number, (accuracy, latency) in enumerate(results):
        ledger.add(record(trial_id(number), accuracy, latency))
    return ledger


def finalist(trial: str, seed: int, accuracy: float | None) -> TrialRecord:
    return record(finalist_id(trial, seed), accuracy, 1.0, seed=seed, test_accuracy=accuracy and accuracy - 0.1)


def text_of(table: Table) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Trials 0 and 2 make the front; 0 has been retrained with three seeds, one of which failed, and 2 with one."""
    ledger = ledger_of(tmp_path / "run", [(0.9, 4.0), (0.7, 3.0), (0.8, 2.0), (None, 0.1)])
    for run in (
        finalist("t0000", 0, 0.8),
        finalist("t0000", 1, 0.84),
        finalist("t0000", 2, None),
        finalist("t0002", 0, 0.9),
    ):
        ledger.add(run)
    return ledger


def test_front_table(ledger: Ledger) -> None:
    rows = [line for line in text_of(front_table(ledger)).splitlines() if "t0" in line]
    assert [row.split()[1] for row in rows] == ["t0000", "t0002"]
    for text in ("0.9000", "4.000", "12,345"):
        assert text in rows[0]


def test_front_table_has_those_that_pause_and_are_expected_there(ledger: Ledger) -> None:
    fields = {"status": "paused", "epochs": 1, "predicted": 0.95, "predicted_sd": 0.012}
    ledger.add(record("t0004", 0.2, 5.0, **fields))
    ledger.add(record("t0005", 0.2, 4.5, **{**fields, "predicted": 0.5}))
    rows = [line for line in text_of(front_table(ledger)).splitlines() if "t0" in line]
    assert [row.split()[1] for row in rows] == ["t0000", "t0002", "t0004"]
    for text in ("expected after 1 epochs", "0.9500 ± 0.0120", "5.000"):
        assert text in rows[2]


def test_front_table_says_what_latency_was_measured_on(ledger: Ledger) -> None:
    assert "latency_ms:" not in text_of(front_table(ledger))
    row = {"batch_size": 64, "dtype": "fp32", "mode": "eager", "device": "Some CPU", "threads": 1}
    ledger.latencies["one"] = LatencyRecord("one", "k", [row, {**row, "batch_size": 1}])
    ledger.front_latencies["one"] = LatencyRecord("one", "k", [{**row, "device": "The front's CPU"}], in_rounds=True)
    said = " ".join(text_of(front_table(ledger)).split())
    assert "latency_ms: median per image, batch size 64, fp32, eager, The front's CPU, threads: 1" in said


def test_finalists_are_summed_up_over_their_completed_seeds(ledger: Ledger) -> None:
    best, other = finalist_summary(ledger)
    assert (best.trial, best.n, best.seeds) == ("t0002", 1, [0])
    assert (best.val_accuracy_std, best.test_accuracy_std) == (None, None)
    assert (other.trial, other.n, other.seeds) == ("t0000", 2, [0, 1])
    assert other.val_accuracy == pytest.approx(0.82)
    assert other.val_accuracy_std == pytest.approx(statistics.stdev([0.8, 0.84]))
    assert other.test_accuracy == pytest.approx(0.72)
    assert other.test_accuracy_std == pytest.approx(statistics.stdev([0.7, 0.74]))


def test_finalists_table(ledger: Ledger) -> None:
    rows = [line for line in text_of(finalists_table(ledger)).splitlines() if "t0" in line]
    assert "0.900" in rows[0]
    assert "±" not in rows[0]
    assert "0.820 ± 0.028" in rows[1]


def test_hypervolume_and_its_reference(ledger: Ledger) -> None:
    # Worst completed trial in each objective: accuracy 0.7, latency 4.0; only (0.8, 2.0) has an area over it.
    volume = front_hypervolume(ledger)
    assert volume["reference"] == [0.7, 4.0]
    assert volume["value"] == pytest.approx(0.1 * 2.0)


@pytest.mark.parametrize("results", [[], [(0.9, 1.0)], [(0.9, 1.0), (None, 1.0)]])
def test_no_hypervolume_of_fewer_than_two(tmp_path: Path, results: list[tuple[float | None, float]]) -> None:
    assert front_hypervolume(ledger_of(tmp_path / "run", results)) is None


def test_plot(ledger: Ledger) -> None:
    plot_front(ledger, ledger.folder / "front.png")
    assert (ledger.folder / "front.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize(
    ("results", "written"), [([], False), ([(None, 1.0)], False), ([(0.9, 1.0)], True), ([(0.9, 1.0)] * 2, True)]
)
def test_plot_of_few(tmp_path: Path, results: list[tuple[float | None, float]], written: bool) -> None:
    ledger = ledger_of(tmp_path / "run", results)
    plot_front(ledger, ledger.folder / "front.png")
    assert (ledger.folder / "front.png").exists() == written


def test_no_plot_of_one_objective(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path / "run", [(0.9, 1.0), (0.8, 0.5)], objectives=CONFIG.objectives[:1])
    plot_front(ledger, ledger.folder / "front.png")
    assert not (ledger.folder / "front.png").exists()


def test_plot_where_words_are_searched(tmp_path: Path) -> None:
    config = SweepConfig(name="a", space={"conv_kind": ["residual", "conv3x3"]})
    ledger = begun(tmp_path / "run", config)
    ledger.add(record("t0000", 0.9, 1.0, point={"conv_kind": "residual"}))
    ledger.add(record("t0001", 0.8, 0.5, point={"conv_kind": None}))
    plot_front(ledger, ledger.folder / "front.png")
    assert (ledger.folder / "front.png").exists()


def test_summary(ledger: Ledger) -> None:
    write_summary(ledger, {"complete": False, "wall_seconds": 1.23, "dataset": {"name": "digits"}})
    write_summary(ledger, {"complete": True, "wall_seconds": 2.0, "dataset": {"name": "digits"}})
    summary = json.loads((ledger.folder / "summary.json").read_text())
    assert set(summary) == {
        "name", "complete", "wall_seconds", "trials", "finalist_runs", "objectives", "front", "hypervolume",
        "analyses", "committees", "finalists", "seeds", "dataset", "failures",
    }  # fmt: skip
    assert summary["trials"] == {"completed": 3, "stopped": 0, "paused": 0, "failed": 1}
    assert summary["finalist_runs"] == {"completed": 3, "stopped": 0, "paused": 0, "failed": 1}
    assert summary["front"] == ["t0000", "t0002"]
    assert summary["hypervolume"]["reference"] == [0.7, 4.0]
    assert [row["trial"] for row in summary["finalists"]] == ["t0002", "t0000"]
    assert set(summary["seeds"]) == {"search", "split", "trials", "finalists"}
    assert summary["complete"]
    assert summary["wall_seconds"] == pytest.approx(3.2, abs=0.05)  # of both sessions, rounded


def test_summary_made_again_keeps_what_the_last_session_said(ledger: Ledger) -> None:
    session = {"complete": True, "wall_seconds": 1.5, "hardware": {"cores": 2}}
    write_summary(ledger, session)
    ledger.add(record("t0009", 0.99, 0.5))
    write_summary(ledger)
    summary = json.loads((ledger.folder / "summary.json").read_text())
    assert {name: summary[name] for name in session} == session
    assert summary["front"] == ["t0009"]
    (ledger.folder / "summary.json").write_text("{")  # damaged: what the session said is lost, no more
    write_summary(ledger)
    assert json.loads((ledger.folder / "summary.json").read_text())["front"] == ["t0009"]


@pytest.mark.parametrize("length", range(12))
@pytest.mark.parametrize("most", range(7))
def test_finalists_spread_evenly_over_the_front(length: int, most: int) -> None:
    front = [record(trial_id(number), 0.9 - 0.01 * number, 10.0 - number) for number in range(length)]
    chosen = [front.index(finalist) for finalist in spread_along(front, most)]
    assert len(chosen) == min(length, most)
    assert chosen == sorted(set(chosen))
    if len(chosen) >= 2:
        assert (chosen[0], chosen[-1]) == (0, length - 1)
        gaps = {after - before for before, after in itertools.pairwise(chosen)}
        assert max(gaps) - min(gaps) <= 1
