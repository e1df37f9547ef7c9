"""From what workers tell of training runs to records, progress, metrics and loggers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from lsmha.models import model_cost
from lsmha.training import EpochMetrics
from lsmha.training.checkpoints import remove_checkpoint
from lsmha.training.saved import logits_path
from orchestrator.execution.training_job import (
    Completed,
    Disturbed,
    EpochEnded,
    Failed,
    Metrics,
    Paused,
    Resumed,
    Started,
    Stopped,
    TrainingEvent,
    TrainingJob,
    TrainingResult,
    Warned,
)
from orchestrator.failures import Failure
from orchestrator.loggers.experiment_loggers import ExperimentLoggers
from orchestrator.reporting.metrics import SweepMetrics
from orchestrator.reporting.progress import Progress
from orchestrator.run_folder.records import TrialRecord, TrialStatus
from orchestrator.search.space import Point


@dataclass(frozen=True)
class KnownLatency:
    """What a record says of latency: fields of `TrialRecord`."""

    architecture: str
    latency_ms: float | None
    latency_p25_ms: float | None = None
    latency_p75_ms: float | None = None

    @classmethod
    def of(cls, record: TrialRecord) -> KnownLatency:
        """That of a record."""
        return cls(**{known.name: getattr(record, known.name) for known in fields(cls)})


@dataclass(frozen=True)
class Entry:
    """A job to do, with what the record needs besides its result."""

    job: TrainingJob
    key: str
    trial: str
    point: Point
    latency: KnownLatency
    curve: dict[int, Metrics] = field(default_factory=dict)
    """Metrics of the epochs so far, by epoch: a run that was started again may repeat one."""
    decided: Mapping[str, Any] = field(default_factory=dict)
    """What the record says of the decision to train it: fields of `TrialRecord`."""


class Recorder:
    """Takes events of jobs, and records each job when it has ended.

    Args:
        entries: By job; those that have ended leave.
        progress: Shows it.
        metrics: Show it.
        loggers: Log it.
        workers: Ranks that train a job.
        add: Keeps a record.
    """

    def __init__(
        self,
        entries: dict[str, Entry],
        progress: Progress,
        metrics: SweepMetrics,
        loggers: ExperimentLoggers,
        *,
        workers: int,
        add: Callable[[TrialRecord], None],
    ) -> None:
        self._entries, self._progress, self._metrics, self._loggers = entries, progress, metrics, loggers
        self._workers, self._add = workers, add
        self._disturbance_was_told = False

    def __call__(self, event: TrainingEvent) -> None:
        """Something happened to a job."""
        entry = self._entries[event.job_id]
        match event:
            case Started():
                self._progress.started(event.job_id, entry.point, entry.job.train.epochs)
                self._metrics.started(event.job_id, finalist=event.job_id != entry.trial)
                self._loggers.started(event.job_id, entry.trial, entry.job.model, entry.job.train)
            case Resumed():
                entry.curve.update({metrics["epoch"]: metrics for metrics in event.curve})
            case EpochEnded(metrics=metrics):
                entry.curve[metrics["epoch"]] = metrics
                self._metrics.epoch_ended(event.job_id, metrics.get("images_per_s"), event.gpu_memory_gib)
                self._progress.epoch_ended(event.job_id, metrics, event.utilization)
                if bad_metric(metrics) is None:
                    self._loggers.epoch_ended(event.job_id, metrics)
            case Warned():
                self._progress.say(f"{event.job_id}: {event.message}")
            case Disturbed():
                self._say_once(f"{event.job_id}: {event.message}; of others the workers' logs tell")
            case Completed():
                self._end(entry, event.result)
            case Stopped():
                self._end_early(entry, "stopped", list(entry.curve.values()))
            case Paused():
                self._end_early(entry, "paused", event.curve)
            case Failed():
                self.fail(event.job_id, event.failure)

    def _say_once(self, disturbance: str) -> None:
        # On a busy machine it is the same with every network.
        if not self._disturbance_was_told:
            self._progress.say(disturbance)
        self._disturbance_was_told = True

    def fail(self, job_id: str, failure: Failure) -> None:
        """Record that a job failed."""
        entry = self._entries[job_id]
        curve = [dict(epoch) for epoch in entry.curve.values() if bad_metric(epoch) is None]
        self._record(
            entry,
            status="failed",
            epochs=len(curve),
            seconds=sum(epoch["seconds"] for epoch in curve),
            curve=curve,
            error=failure.reason,
            failure=failure.kind,
            traceback=failure.traceback,
        )

    def _end_early(self, entry: Entry, status: TrialStatus, curve: Sequence[Metrics]) -> None:
        if problem := next(filter(None, map(bad_metric, curve)), None):
            self.fail(entry.job.id, Failure(problem, "metrics"))
            return
        self._record(entry, status=status, **_reached(curve))

    def _end(self, entry: Entry, result: TrainingResult) -> None:
        failure = _problem_of(result, entry.job)
        if failure is not None:
            self.fail(entry.job.id, failure)
            return
        self._record(
            entry,
            status="completed",
            **_reached(result.curve),
            **(result.test or {}),
            precision=result.precision,
            attention=result.attention,
            train_device=result.device,
        )

    def _record(self, entry: Entry, **outcome: Any) -> None:
        job = entry.job
        del self._entries[job.id]
        cost = model_cost(job.model)
        record = TrialRecord(
            id=job.id,
            key=entry.key,
            trial=entry.trial,
            point=entry.point,
            seed=job.train.seed,
            params=cost.params,
            macs=cost.macs,
            **vars(entry.latency),
            **entry.decided,
            workers=self._workers,
            **outcome,
        )
        self._add(record)
        self._progress.ended(record)
        self._metrics.ended(record)
        if record.paused:
            self._loggers.paused(record.id)
        else:
            remove_checkpoint(job.checkpoint)
            self._loggers.ended(record)


def _reached(curve: Sequence[Metrics]) -> dict[str, Any]:
    """What a record says of a run that ended well with the last of these epochs."""
    last = curve[-1]
    return {
        "epochs": last["epoch"],
        "seconds": sum(epoch["seconds"] for epoch in curve),
        "val_accuracy": last["val_accuracy"],
        "val_loss": last["val_loss"],
        "curve": [dict(epoch) for epoch in curve],
    }


def _problem_of(result: TrainingResult, job: TrainingJob) -> Failure | None:
    """Why a result is none."""
    if not result.curve:
        return Failure("its training ended without a result", "metrics")
    for metrics in [*result.curve, result.test or {}]:
        if (problem := bad_metric(metrics)) is not None:
            return Failure(problem, "metrics")
    if job.export is not None and not logits_path(job.export, "test").is_file():
        reason = f"its files are not in {job.export}: the run folder must be on storage that all nodes share"
        return Failure(reason, "files")
    return None


def bad_metric(metrics: Mapping[str, Any]) -> str | None:
    """What is wrong with an epoch's or a test's metrics, in one line: missing, no number, or not finite."""
    expected = {metric.name for metric in fields(EpochMetrics)} if "epoch" in metrics else metrics.keys()
    for name in sorted(expected):
        value = metrics.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return f"{name} must be a finite number, but got {value!r}"
    return None
