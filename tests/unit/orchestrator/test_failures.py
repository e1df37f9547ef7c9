"""What was foreseen is a kind of failure; anything else keeps its traceback and is told apart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console
from tiny_data import tiny_dataset, tiny_model, tiny_recipe

from lsmha.errors import ConfigurationError, DamagedFileError, DivergenceError, MemoryShortageError
from orchestrator.commands.status import show_status
from orchestrator.config.sweep import SweepConfig
from orchestrator.execution import training
from orchestrator.execution.training import train_jobs
from orchestrator.execution.training_job import Failed, TrainingEvent, TrainingJob
from orchestrator.failures import describe_error, failure_of
from orchestrator.reporting.artifacts import write_artifacts
from orchestrator.run_folder.content_hash import content_hash
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import AnalysisRecord, Fingerprint, TrialRecord
from orchestrator.terminal import Terminal


class OutOfMemoryError(RuntimeError):
    """Called as torch's and Ray's are."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (DivergenceError("loss is nan"), "diverged"),
        (MemoryShortageError("a step needs 9 GiB"), "memory"),
        (MemoryError(), "memory"),
        (OutOfMemoryError("CUDA out of memory"), "memory"),
        (ConfigurationError("depth 9"), "configuration"),
        (DamagedFileError("x.pt is damaged"), "files"),
        (ray.exceptions.WorkerCrashedError(), "worker"),
        (ray.exceptions.NodeDiedError("gone"), "worker"),
        (TypeError("unsupported operand"), "unexpected"),
        (ValueError("too many values to unpack"), "unexpected"),
        (KeyError("val_accuracy"), "unexpected"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value,
)
@pytest.mark.parametrize("in_worker", [False, True])
def test_kinds(error: Exception, kind: str, in_worker: bool) -> None:
    if in_worker:
        error = ray.exceptions.RayTaskError("train", "Traceback of the worker", error)
    failure = failure_of(error)
    assert failure.kind == kind
    assert "\n" not in failure.reason
    assert (failure.traceback is not None) == (kind == "unexpected")


def test_an_explanation_comes_after_the_reason() -> None:
    error = OSError("(sqlite3.OperationalError) table metrics already exists\n[SQL: ...]\n(Background: e3q8)")
    assert describe_error(error) == "OSError: (sqlite3.OperationalError) table metrics already exists"


def test_a_traceback_says_where() -> None:
    try:
        _ = [][0]
    except IndexError as error:
        failure = failure_of(error)
    assert failure.reason == "IndexError: list index out of range"
    assert failure.traceback is not None
    assert "test_failures.py" in failure.traceback


def test_training_tells_what_it_foresaw_and_lets_the_rest_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(error: Exception) -> list[TrainingEvent]:
        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr(training, "Trainer", fail)
        job = TrainingJob("t0000", tiny_model(), tiny_recipe(), tmp_path / "t0000.pt")
        epochs = train_jobs([job], tiny_dataset(), device=training.torch.device("cpu"), threads=1)
        return [event for events in epochs for event in events]

    (event,) = run(DivergenceError("loss is nan"))
    assert isinstance(event, Failed)
    assert (event.failure.kind, event.failure.traceback) == ("diverged", None)
    for unforeseen in (ValueError("shapes do not match"), TypeError("not a tensor"), AttributeError("no such thing")):
        with pytest.raises(type(unforeseen)):
            run(unforeseen)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """A run with a trial that diverged, one that met a fault of the program, and an analysis that did."""
    config = SweepConfig.model_validate(
        {"name": "x", "space": {"depth": [1, 2]}, "objectives": [{"metric": "val_accuracy", "direction": "maximize"}]}
    )
    ledger = Ledger.create(tmp_path / "run", config)
    ledger.begin_session(config, Fingerprint("d", 1))
    fault = failure_of(_raised(ZeroDivisionError("division by zero")))
    for run_id, failure in {
        "t0000": failure_of(DivergenceError("loss is nan")),
        "t0001": fault,
    }.items():
        ledger.add(
            TrialRecord(
                id=run_id, trial=run_id, key=content_hash({"run": run_id}), status="failed", point={"depth": 1}, seed=0,
                params=1, macs=1, latency_ms=None, epochs=0, seconds=0.0, error=failure.reason, failure=failure.kind,
                traceback=failure.traceback,
            )
        )  # fmt: skip
    ledger.add(AnalysisRecord("t0002-s0", "k" * 64, [], fault))
    return ledger


def _raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


def test_records_keep_it(ledger: Ledger) -> None:
    again = Ledger.load(ledger.folder)
    diverged, fault = again.trials
    assert (diverged.failure, diverged.traceback) == ("diverged", None)
    assert fault.failure == "unexpected"
    assert fault.traceback is not None
    assert "ZeroDivisionError: division by zero" in fault.traceback
    failure = again.analyses["t0002-s0"].failure
    assert failure is not None
    assert failure.traceback == fault.traceback
    assert "traceback" not in fault.row(), "tables have its line; tracebacks/ has the rest"


def test_the_summary_tells_kinds_apart(ledger: Ledger) -> None:
    write_artifacts(ledger)
    summary = json.loads((ledger.folder / "summary.json").read_text())
    assert summary["failures"] == {"diverged": ["t0000"], "unexpected": ["t0001", "analysis of t0002-s0"]}
    files = {path.name: path.read_text() for path in (ledger.folder / "tracebacks").iterdir()}
    assert files.keys() == {"t0001.txt", "t0002-s0-analysis.txt"}
    assert all("ZeroDivisionError" in text for text in files.values())


def test_status_says_where_to_look(ledger: Ledger) -> None:
    console = Console(width=200)
    with console.capture() as captured:
        show_status(ledger.folder, Terminal(console))
    lines = {line.strip() for line in captured.get().splitlines()}
    fault = "ZeroDivisionError: division by zero (unforeseen: see tracebacks/"
    assert "t0000 failed: DivergenceError: loss is nan" in lines
    assert f"t0001 failed: {fault}t0001.txt)" in lines
    assert f"t0002-s0 failed: {fault}t0002-s0-analysis.txt)" in lines
