"""From events to records: results that are none, epochs told twice, checkpoints that are no longer needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_data import tiny_model, tiny_recipe

from lsmha.config import ModelConfig, TrainConfig
from lsmha.training.checkpoints import checkpoint_files
from orchestrator.execution.training_job import (
    Completed,
    Disturbed,
    EpochEnded,
    Failed,
    Paused,
    Resumed,
    Started,
    Stopped,
    TrainingJob,
    TrainingResult,
)
from orchestrator.failures import Failure
from orchestrator.reporting.progress import Progress
from orchestrator.run_folder.records import TrialRecord
from orchestrator.stages.recorder import Entry, KnownLatency, Recorder, bad_metric
from orchestrator.stages.sweep import longest_first
from orchestrator.terminal import QUIET

EPOCH: dict[str, Any] = {
    "epoch": 1,
    "train_loss": 2.0,
    "val_loss": 1.5,
    "val_accuracy": 0.25,
    "learning_rate": 0.001,
    "seconds": 0.5,
    "images_per_s": 100.0,
}


def test_good_metrics() -> None:
    assert bad_metric(EPOCH) is None
    assert bad_metric({"test_accuracy": 0, "test_loss": 1.5}) is None
    assert bad_metric({}) is None


@pytest.mark.parametrize("name", sorted(EPOCH.keys() - {"epoch"}))
@pytest.mark.parametrize("value", [None, "0.5", True, float("nan"), float("inf"), float("-inf"), [0.5]])
def test_a_metric_that_is_none(name: str, value: Any) -> None:
    assert bad_metric({**EPOCH, name: value}) == f"{name} must be a finite number, but got {value!r}"


@pytest.mark.parametrize("name", sorted(EPOCH.keys() - {"epoch"}))
def test_a_metric_that_is_missing(name: str) -> None:
    metrics = {metric: value for metric, value in EPOCH.items() if metric != name}
    assert bad_metric(metrics) == f"{name} must be a finite number, but got None"


@pytest.mark.parametrize("value", [None, "0.5", False, float("nan")])
def test_a_test_metric_that_is_none(value: Any) -> None:
    assert bad_metric({"test_accuracy": value, "test_loss": 1.0}) == (
        f"test_accuracy must be a finite number, but got {value!r}"
    )


class Noted:
    """What metrics are told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def started(self, run_id: str, *, finalist: bool) -> None:
        self.told.append(("started", run_id, finalist))

    def epoch_ended(self, run_id: str, images_per_s: Any, gpu_memory_gib: Any) -> None:
        self.told.append(("epoch", run_id, images_per_s, gpu_memory_gib))

    def ended(self, record: TrialRecord) -> None:
        self.told.append(("ended", record.id, record.status))


class Logged:
    """What loggers are told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def started(self, run_id: str, trial: str, model: ModelConfig, train: TrainConfig) -> None:
        self.told.append(("started", run_id, trial, train.epochs))

    def epoch_ended(self, run_id: str, metrics: dict[str, Any]) -> None:
        self.told.append(("epoch", run_id, metrics["epoch"]))

    def paused(self, run_id: str) -> None:
        self.told.append(("paused", run_id))

    def ended(self, record: TrialRecord) -> None:
        self.told.append(("ended", record.id, record.status))


class Recorded:
    """A recorder of one job, and what it recorded."""

    def __init__(self, folder: Path, *, export: bool = False) -> None:
        self.records: list[TrialRecord] = []
        self.checkpoint = folder / "checkpoints" / "t0000.pt"
        self.checkpoint.parent.mkdir()
        for file in checkpoint_files(self.checkpoint):
            file.touch()
        job = TrainingJob(
            "t0000", tiny_model(), tiny_recipe(epochs=2), self.checkpoint, folder / "out" if export else None
        )
        entry = Entry(job, "k" * 64, "t0000", {"num_heads": 2}, KnownLatency("a1", 1.5))
        self.metrics, self.loggers = Noted(), Logged()
        self.recorder = Recorder(
            {"t0000": entry},
            Progress(QUIET),
            self.metrics,  # type: ignore[arg-type]
            self.loggers,  # type: ignore[arg-type]
            workers=3,
            add=self.add,
        )

    def add(self, record: TrialRecord) -> None:
        assert all(file.exists() for file in checkpoint_files(self.checkpoint)), "the record comes first"
        self.records.append(record)

    @property
    def record(self) -> TrialRecord:
        (record,) = self.records
        assert not any(file.exists() for file in checkpoint_files(self.checkpoint))
        assert (record.id, record.key, record.trial, record.workers) == ("t0000", "k" * 64, "t0000", 3)
        assert (record.point, record.seed, record.latency_ms) == ({"num_heads": 2}, 0, 1.5)
        return record


def epoch(number: int, **changed: Any) -> dict[str, Any]:
    return {**EPOCH, "epoch": number, **changed}


def result(*curve: dict[str, Any], **test: Any) -> TrainingResult:
    return TrainingResult(curve, "fp32", "sdpa", "cpu", test or None)


def test_other_work_of_the_machine_is_told_of_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(Progress, "say", lambda self, text: said.append(text))
    recorded = Recorded(tmp_path)
    for waited in ("40 %", "50 %"):
        recorded.recorder(Disturbed("t0000", f"chosen beside other work, {waited}"))
    assert said == ["t0000: chosen beside other work, 40 %; of others the workers' logs tell"]


def test_a_completed_job(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    recorded.recorder(Started("t0000"))
    recorded.recorder(Completed("t0000", result(epoch(1), epoch(2, val_accuracy=0.5, seconds=1.0))))
    record = recorded.record
    assert (record.status, record.epochs, record.seconds, record.val_accuracy) == ("completed", 2, 1.5, 0.5)
    assert (record.test_accuracy, record.precision, record.train_device, record.error) == (None, "fp32", "cpu", None)
    assert [metrics["epoch"] for metrics in record.curve] == [1, 2]


def test_a_stopped_job_has_the_epochs_of_all_sessions(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    recorded.recorder(Started("t0000"))
    recorded.recorder(Resumed("t0000", (epoch(1), epoch(2))))
    recorded.recorder(EpochEnded("t0000", epoch(3, val_accuracy=0.5, seconds=1.0)))
    recorded.recorder(Stopped("t0000"))
    record = recorded.record
    assert (record.status, record.epochs, record.seconds, record.val_accuracy) == ("stopped", 3, 2.0, 0.5)
    assert not record.completed
    assert not record.failed
    assert record.error is None
    assert [metrics["epoch"] for metrics in record.curve] == [1, 2, 3]


def test_a_stopped_job_with_a_metric_that_is_none_has_failed(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    recorded.recorder(Started("t0000"))
    recorded.recorder(EpochEnded("t0000", epoch(1, train_loss=float("nan"))))
    recorded.recorder(Stopped("t0000"))
    assert (recorded.record.status, recorded.record.failure) == ("failed", "metrics")


def test_a_job_that_pauses_keeps_its_checkpoint(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    recorded.recorder(Started("t0000"))
    recorded.recorder(EpochEnded("t0000", epoch(1)))
    recorded.recorder(Paused("t0000", (epoch(1),)))
    (record,) = recorded.records
    assert (record.status, record.epochs, record.kind, record.name) == ("paused", 1, "pauses", "t0000-e0001")
    assert not record.completed
    assert all(file.exists() for file in checkpoint_files(recorded.checkpoint))
    assert recorded.loggers.told[-1] == ("paused", "t0000")


def test_gpu_memory_is_for_the_metrics_alone(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    recorded.recorder(Started("t0000"))
    recorded.recorder(EpochEnded("t0000", epoch(1), gpu_memory_gib=2.5, utilization=0.5))
    recorded.recorder(EpochEnded("t0000", {"epoch": 2}))  # a worker that tells little
    recorded.recorder(Failed("t0000", Failure("no more", "diverged")))
    assert recorded.record.curve == [epoch(1)]
    assert recorded.metrics.told == [
        ("started", "t0000", False),
        ("epoch", "t0000", 100.0, 2.5),
        ("epoch", "t0000", None, 0.0),
        ("ended", "t0000", "failed"),
    ]


def test_a_job_that_was_begun_anew_repeats_an_epoch(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    for metrics in (epoch(1), epoch(2, val_accuracy=0.1), epoch(2, val_accuracy=0.5)):
        recorded.recorder(Started("t0000"))
        recorded.recorder(EpochEnded("t0000", metrics))
    recorded.recorder(Failed("t0000", Failure("WorkerCrashedError: gone (tried 3 times)", "worker")))
    record = recorded.record
    assert (record.status, record.epochs, record.seconds) == ("failed", 2, 1.0)
    assert [metrics["val_accuracy"] for metrics in record.curve] == [0.25, 0.5]
    assert (record.val_accuracy, record.error) == (None, "WorkerCrashedError: gone (tried 3 times)")


@pytest.mark.parametrize(
    ("outcome", "error"),
    [
        (result(), "its training ended without a result"),
        (result(epoch(1, val_accuracy=float("nan"))), "val_accuracy must be a finite number, but got nan"),
        (result(epoch(1, val_loss=None), epoch(2)), "val_loss must be a finite number, but got None"),
        (result(epoch(1), test_accuracy=None, test_loss=1.0), "test_accuracy must be a finite number, but got None"),
    ],
)
def test_a_result_that_is_none_fails_the_job(tmp_path: Path, outcome: TrainingResult, error: str) -> None:
    recorded = Recorded(tmp_path)
    recorded.recorder(Started("t0000"))
    recorded.recorder(EpochEnded("t0000", epoch(1, train_loss=float("nan"))))
    recorded.recorder(Completed("t0000", outcome))
    record = recorded.record
    assert (record.status, record.error, record.val_accuracy, record.curve) == ("failed", error, None, [])
    assert (record.failure, record.traceback) == ("metrics", None)


def test_a_finalist_whose_files_are_elsewhere(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, export=True)
    recorded.recorder(Completed("t0000", result(epoch(1), test_accuracy=0.5, test_loss=1.0)))
    record = recorded.record
    assert record.status == "failed"
    assert "the run folder must be on storage that all nodes share" in str(record.error)


def test_jobs_begin_with_the_longest() -> None:
    def job(name: str, epochs: int = 1, **model: int) -> TrainingJob:
        return TrainingJob(name, tiny_model(**model), tiny_recipe(epochs=epochs), Path(f"{name}.pt"))

    jobs = [
        job("small"),
        job("deep", depth=3),
        job("small too"),
        job("small for long", epochs=9),
        job("small again", depth=2),
    ]
    assert [job.id for job in longest_first(jobs)] == ["small for long", "deep", "small", "small too", "small again"]


def test_loggers_hear_of_good_epochs_alone(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path)
    recorded.recorder(Started("t0000"))
    recorded.recorder(EpochEnded("t0000", epoch(1), 0.5, 0.0))
    recorded.recorder(EpochEnded("t0000", epoch(2, val_loss=float("nan")), 0.5, 0.0))
    recorded.recorder(Failed("t0000", Failure("it diverged", "diverged")))
    assert recorded.loggers.told == [
        ("started", "t0000", "t0000", 2),
        ("epoch", "t0000", 1),
        ("ended", "t0000", "failed"),
    ]
