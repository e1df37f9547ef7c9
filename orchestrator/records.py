"""What a sweep knows about its trials, finalists and latencies."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from orchestrator.search_space import Point


@dataclass(frozen=True)
class TrialRecord:
    """One ended training run: a trial of the search, or a finalist."""

    id: str
    """`t0007` for a trial, `t0007-s1` for its retraining with seed 1."""
    trial: str
    """The trial's id, of which a finalist has the configuration."""
    status: Literal["completed", "failed"]
    point: Point
    """Every searched value; None where it has no effect."""
    seed: int
    """Seed of the training run."""
    params: int
    """Parameters of the network."""
    macs: int
    """Multiply-accumulates per image."""
    latency_ms: float | None
    """Median inference latency per image at the first of `latency.batch_sizes`, in milliseconds."""
    epochs: int
    """Epochs done."""
    seconds: float
    """Training and evaluation time, start-up excluded."""
    val_accuracy: float | None = None
    val_loss: float | None = None
    test_accuracy: float | None = None
    """Finalists only."""
    test_loss: float | None = None
    precision: str | None = None
    """`bf16` (autocast) or `fp32`."""
    train_device: str | None = None
    workers: int = 1
    """Ranks that trained together."""
    error: str | None = None
    """Why it failed, in one line."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """`lsmha.training.EpochMetrics` of each epoch."""

    @property
    def completed(self) -> bool:
        return self.status == "completed"

    def row(self) -> dict[str, Any]:
        """The flat table row: the searched values among the columns, the curve left out."""
        values = asdict(self)
        values.pop("curve")
        point = values.pop("point")
        head = {name: values.pop(name) for name in ("id", "trial", "status")}
        return {**head, **point, **values}


def trial_id(number: int) -> str:
    """Id of the search's trial with this number."""
    return f"t{number:04d}"


def finalist_id(trial: str, seed: int) -> str:
    """Id of a trial's retraining with a seed."""
    return f"{trial}-s{seed}"
