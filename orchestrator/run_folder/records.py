"""What a sweep knows of its trials and finalists, and what they came from."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from orchestrator.errors import UserError
from orchestrator.run_folder.content_hash import key_of
from orchestrator.search.space import Point


@dataclass(frozen=True)
class TrialRecord:
    """One ended training run: a trial of the search, or a finalist."""

    id: str
    """`t0007` for a trial, `t0007-s1` for its retraining with seed 1."""
    trial: str
    """The trial's id, of which a finalist has the configuration."""
    key: str
    """Of what was run (`identity.training_key`)."""
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
    """Median inference latency per image at the first of `latency.batch_sizes`, in milliseconds: as the search measured
    it; of records on the front, and of finalists, as the rounds did."""
    epochs: int
    """Epochs done."""
    seconds: float
    """Training and evaluation time, start-up excluded."""
    val_accuracy: float | None = None
    val_loss: float | None = None
    test_accuracy: float | None = None
    """Finalists only."""
    test_loss: float | None = None
    architecture: str = ""
    """Of the network, as the latency table names it."""
    latency_p25_ms: float | None = None
    """Lower quartile over the processes of the rounds; None where the search measured."""
    latency_p75_ms: float | None = None
    """Upper quartile, likewise."""
    precision: str | None = None
    """`bf16` (autocast) or `fp32`."""
    attention: str | None = None
    """Attention kernel of training; `none` for a plain CNN."""
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
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "curve"}
        point = values.pop("point")
        head = {name: values.pop(name) for name in ("id", "trial", "status")}
        return {**head, **point, **values}


@dataclass(frozen=True)
class Wave:
    """Proposals that were made together, before any of their results was known."""

    first: int
    """Number of the first one."""
    points: list[Point]
    queued: int
    """How many of them, from the first on, were points to try first: no questions for the sampler."""
    elapsed_s: float
    """How long the search had taken before, all sessions together."""


@dataclass(frozen=True)
class Origin:
    """What results depend on besides the settings: they mix with no others."""

    data: str
    """`Dataset.digest()`."""
    recipe_version: int
    """`lsmha.config.RECIPE_VERSION`."""

    @property
    def key(self) -> str:
        return key_of(asdict(self))

    def check(self, now: Origin) -> None:
        """Refuse to go on with other images or another version of the training code.

        Raises:
            UserError: They are others.
        """
        if now.data != self.data:
            raise UserError(f"data: must be the images of the run (digest {self.data[:12]}), but got {now.data[:12]}")
        if now.recipe_version != self.recipe_version:
            raise UserError(
                f"lsmha-sweep: this version trains by recipe {now.recipe_version}, the run by {self.recipe_version}; "
                "their results do not mix"
            )


def trial_id(number: int) -> str:
    """Id of the search's trial with this number."""
    return f"t{number:04d}"


def finalist_id(trial: str, seed: int) -> str:
    """Id of a trial's retraining with a seed."""
    return f"{trial}-s{seed}"
