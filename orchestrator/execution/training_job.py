"""A training run as it travels to a worker, and what a worker tells of it.

All of these are plain enough to be unpickled where neither torch nor Ray is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lsmha.config import ModelConfig, TrainConfig
from lsmha.io.paths import RunPath
from orchestrator.failures import Failure


@dataclass(frozen=True)
class TrainingJob:
    """One training run."""

    id: str
    model: ModelConfig
    train: TrainConfig
    checkpoint: RunPath
    """Rewritten after every epoch; a run that is started again goes on from it."""
    export: RunPath | None = None
    """Folder for the trained weights and the test logits; None leaves the test set alone."""
    pause_at: int | None = None
    """The epoch after which it pauses, with its checkpoint kept; None trains it to its end."""

    @property
    def last_epoch(self) -> int:
        """The epoch after which it pauses or ends."""
        return self.train.epochs if self.pause_at is None else min(self.pause_at, self.train.epochs)

    @property
    def seed_group(self) -> str | None:
        """Name of all that differ from this one by their seeds alone: those can be trained together; None if none
        can."""
        if self.pause_at is not None:
            return None
        alike = self.train.model_copy(update={"seed": 0})
        return f"{self.model.model_dump_json()} {alike.model_dump_json()}"


Metrics = Mapping[str, Any]
"""`lsmha.training.EpochMetrics` by name, as a worker told them: whether they are numbers is for the driver to judge."""


@dataclass(frozen=True)
class TrainingResult:
    """What a training run has come to."""

    curve: tuple[Metrics, ...]
    """Of each epoch."""
    precision: str
    """`bf16` (autocast) or `fp32`."""
    attention: str
    """Attention kernel of training; `none` for a plain CNN."""
    device: str
    """`cpu` or `cuda`."""
    test: Metrics | None = None
    """`test_accuracy` and `test_loss`, of a run that is exported."""


@dataclass(frozen=True)
class Started:
    """A worker begins with a job, maybe not for the first time."""

    job_id: str


@dataclass(frozen=True)
class Resumed:
    """A job goes on from its checkpoint."""

    job_id: str
    curve: tuple[Metrics, ...]
    """Of the epochs that it has behind it."""


@dataclass(frozen=True)
class EpochEnded:
    """A job did an epoch."""

    job_id: str
    metrics: Metrics
    gpu_memory_gib: float = 0.0
    """Peak of GPU memory since the job began; 0 on CPUs."""
    utilization: float | None = None
    """How busy the device was in the epoch, 0 to 1; None where that is not known."""


@dataclass(frozen=True)
class Warned:
    """A job got over something."""

    job_id: str
    message: str
    """One line."""


@dataclass(frozen=True)
class Disturbed:
    """Other work of the machine had a part in how a job is computed."""

    job_id: str
    message: str
    """One line."""


@dataclass(frozen=True)
class Completed:
    """A job trained to its end."""

    job_id: str
    result: TrainingResult


@dataclass(frozen=True)
class Stopped:
    """A job was ended after an epoch: others are more promising."""

    job_id: str


@dataclass(frozen=True)
class Paused:
    """A job got to the epoch where it pauses."""

    job_id: str
    curve: tuple[Metrics, ...]
    """Of all epochs so far."""


@dataclass(frozen=True)
class Failed:
    """A job ended without a result."""

    job_id: str
    failure: Failure


TrainingEvent = Started | Resumed | EpochEnded | Warned | Disturbed | Completed | Stopped | Paused | Failed

EventCallback = Callable[[TrainingEvent], None]
"""Told what happens to jobs, in order."""


def joint_name(jobs: Iterable[TrainingJob]) -> str:
    """What jobs that are trained together are called, in logs, by processes and by Ray Tune: `t0007-s0+t0007-s1`."""
    return "+".join(job.id for job in jobs)


def ended_by(events: Iterable[TrainingEvent]) -> set[str]:
    """Ids of the jobs that these events end; one that pauses has ended until somebody wants more of it."""
    return {event.job_id for event in events if isinstance(event, Completed | Stopped | Paused | Failed)}
