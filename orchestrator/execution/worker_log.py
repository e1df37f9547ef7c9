"""What a worker process shows of the job that it does: lines in its log, and its name.

A worker does many jobs, so the names that Ray gives say nothing of trials. The log is in Ray's dashboard, and in
`logs/worker-*.out` of its session on the node (of a worker that ended, at times in `logs/old`); the name is in the
dashboard's list of workers, and in `ps`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from ray import _raylet

from orchestrator.execution.training_job import (
    Completed,
    Disturbed,
    EpochEnded,
    Failed,
    Paused,
    Resumed,
    Started,
    TrainingEvent,
    Warned,
)


@contextmanager
def shown_as(job_id: str) -> Iterator[None]:
    """Log the exception that ends a job; meanwhile the process is called like `ray::TrainingTrial.train:t0007`."""
    with _process_called(job_id):
        try:
            yield
        except BaseException as error:
            log(job_id, f"broken off {type(error).__name__}: {error}")
            raise


def log_event(event: TrainingEvent) -> None:
    """One line for an event. Never fails."""
    match event:
        case Started():
            log(event.job_id, "started")
        case Resumed():
            log(event.job_id, f"goes on after epoch {len(event.curve)}")
        case EpochEnded():
            device = {"gpu_memory_gib": event.gpu_memory_gib, "utilization": event.utilization}
            log(event.job_id, _shown({**event.metrics, **device}))
        case Warned():
            log(event.job_id, f"warning {event.message}")
        case Disturbed():
            log(event.job_id, f"disturbed {event.message}")
        case Completed(_, result):
            last = result.curve[-1] if result.curve else {}
            how = {"precision": result.precision, "attention": result.attention, "train_device": result.device}
            log(event.job_id, f"completed {_shown({**last, **how, **(result.test or {})})}")
        case Paused():
            log(event.job_id, f"pauses after epoch {len(event.curve)}")
        case Failed():
            log(event.job_id, f"failed {event.failure.reason}")


def log(job_id: str, text: str) -> None:
    """One line: time, job, and what happened. Never fails."""
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {job_id}: {text}"
    with suppress(OSError, ValueError):  # a full disk, a closed log: the job can do without
        print(" ".join(line.split()), flush=True)


@contextmanager
def _process_called(job_id: str) -> Iterator[None]:
    # Ray names its workers by these two; should it rename them, processes just keep the names of their tasks.
    get, rename = (getattr(_raylet, name, None) for name in ("getproctitle", "setproctitle"))
    if get is None or rename is None:
        yield
        return
    title = get()
    rename(f"{title}:{job_id}")
    try:
        yield
    finally:
        rename(title)


def _shown(values: Mapping[str, Any]) -> str:
    words = (f"{value:.5g}" if isinstance(value, float) else str(value) for value in values.values())
    return " ".join(f"{name}={word}" for name, word in zip(values, words, strict=True))
