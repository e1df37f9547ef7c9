"""What a run finds out, a class for each kind of record; `record_files` keeps each as a file.

All have a `kind`, which names the folder of such records, the `name` of what they are of, such as `t0007`, a `key`, the
hash of what was run, and a `content`, all else as plain values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from orchestrator.config.sweep import SweepConfig
from orchestrator.config.yaml import plain_settings
from orchestrator.errors import UserError
from orchestrator.failures import Failure, FailureKind
from orchestrator.run_folder.committee_rows import CommitteeRow, committee_row
from orchestrator.run_folder.content_hash import content_hash
from orchestrator.search.space import Point


@dataclass(frozen=True)
class _Whole:
    """A record that is all its fields, and is told by them."""

    @property
    def key(self) -> str:
        return content_hash(asdict(self))

    def content(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Fingerprint(_Whole):
    """What results depend on besides the settings: they mix with no others."""

    data: str
    """`Dataset.digest()`."""
    recipe_version: int
    """`lsmha.config.RECIPE_VERSION`."""

    kind = "fingerprint"
    name = "run"

    def check(self, now: Fingerprint) -> None:
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


@dataclass(frozen=True)
class Settings:
    """The settings of the run's latest session."""

    config: SweepConfig

    kind = "settings"
    name = "run"

    @property
    def key(self) -> str:
        return content_hash(plain_settings(self.config))

    def content(self) -> dict[str, Any]:
        return {"settings": plain_settings(self.config)}


@dataclass(frozen=True)
class SuggestionBatch(_Whole):
    """Suggestions that were made together, before any of their results was known."""

    first: int
    """Number of the first one."""
    points: list[Point]
    enqueued: int
    """How many of them, from the first on, were points to try first: no questions for the sampler."""
    elapsed_s: float
    """How long the search had taken before, all sessions together."""

    kind = "batches"

    @property
    def name(self) -> str:
        return f"b{self.first:04d}"


@dataclass(frozen=True)
class DecidedSegment:
    """A part of a trial's training, as a strategy decided on it."""

    trial: str
    """`t0007`."""
    point: Point
    from_epoch: int
    to_epoch: int
    why: str
    """As `search.front.problem.Segment` says, as the rest is."""
    mean: float | None
    sd: float | None
    gain: float | None


@dataclass(frozen=True)
class DecisionRecord(_Whole):
    """Segments that a strategy decided on together, before any of them was trained."""

    number: int
    at: float
    """In the time of the planner."""
    segments: list[DecidedSegment]
    elapsed_s: float
    """How long the search had taken before, all sessions together."""

    kind = "decisions"

    @property
    def name(self) -> str:
        return f"d{self.number:05d}"


TrialStatus = Literal["completed", "stopped", "paused", "failed"]
"""How a training run ended; `stopped` is a trial that `search.scheduler` ended before its last epoch, `paused` one that
`search.strategy` may go on with."""


@dataclass(frozen=True)
class TrialRecord:
    """One training run that ended, or pauses: a trial of the search, or a finalist."""

    id: str
    """`t0007` for a trial, `t0007-s1` for its retraining with seed 1."""
    trial: str
    """The trial's id, of which a finalist has the configuration."""
    key: str
    """Of what was run (`content_hash.training_hash`)."""
    status: TrialStatus
    point: Point
    """Every searched value; None where it is inactive."""
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
    why: str | None = None
    """Why `search.strategy` trained it as far as this; None for another one."""
    predicted: float | None = None
    """What it then expected of the trained objective, at the last epoch."""
    predicted_sd: float | None = None
    """Standard deviation of that."""
    error: str | None = None
    """Why it failed, in one line."""
    failure: FailureKind | None = None
    """Of what kind that is; None also in records of version 0.1."""
    traceback: str | None = None
    """Of an error that was not foreseen."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """`lsmha.training.EpochMetrics` of each epoch."""

    @property
    def kind(self) -> str:
        if self.paused:
            return "pauses"
        return "finalists" if self.is_finalist else "trials"

    @property
    def name(self) -> str:
        return f"{self.id}-e{self.epochs:04d}" if self.paused else self.id

    def content(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def is_finalist(self) -> bool:
        return self.id != self.trial

    @property
    def completed(self) -> bool:
        return self.status == "completed"

    @property
    def stopped(self) -> bool:
        return self.status == "stopped"

    @property
    def paused(self) -> bool:
        return self.status == "paused"

    @property
    def failed(self) -> bool:
        return self.status == "failed"

    def row(self) -> dict[str, Any]:
        """The flat table row: the searched values among the columns, curve and traceback left out."""
        values = {
            column.name: getattr(self, column.name)
            for column in fields(self)
            if column.name not in ("curve", "traceback")
        }
        point = values.pop("point")
        head = {name: values.pop(name) for name in ("id", "trial", "status")}
        return {**head, **point, **values}


@dataclass(frozen=True)
class DroppedCheckpoint(_Whole):
    """The state of a trial that pauses was removed, as `search.paused_gib` was used up."""

    trial: str
    epochs: int
    """After which it pauses."""
    bytes: int
    """That it took."""

    kind = "drops"

    @property
    def name(self) -> str:
        return f"{self.trial}-e{self.epochs:04d}"


@dataclass(frozen=True)
class LatencyRecord:
    """The latency of one architecture on one kind of device, at each batch size."""

    architecture: str
    """`content_hash.architecture_hash` of the network."""
    key: str
    rows: Sequence[Mapping[str, Any]]
    """Rows of `latency.parquet`, by batch size: columns of the network, and `lsmha.latency.LatencyMeasurement`."""
    in_rounds: bool = False
    """Whether it was measured in rounds of fresh processes, as that of the front is, or by the search."""

    @property
    def kind(self) -> str:
        return "front_latency" if self.in_rounds else "latency"

    @property
    def name(self) -> str:
        return self.architecture

    def content(self) -> dict[str, Any]:
        return {"rows": [dict(row) for row in self.rows]}

    @property
    def first(self) -> Mapping[str, Any]:
        """The row of the batch size that trials are chosen by."""
        return self.rows[0]

    @property
    def latency_ms(self) -> float:
        """Median per image, in milliseconds."""
        return float(self.first["latency_ms"])

    @property
    def device(self) -> str:
        return str(self.first["device"])


@dataclass(frozen=True)
class AnalysisRecord:
    """The analysis of a finalist, or why there is none."""

    finalist: str
    key: str
    blocks: Sequence[Mapping[str, Any]]
    """Rows of `analysis.parquet` but for their `id`, as `lsmha.analysis.saved.block_rows` gives them."""
    failure: Failure | None = None

    kind = "analyses"

    @property
    def name(self) -> str:
        return self.finalist

    @property
    def completed(self) -> bool:
        return self.failure is None

    def content(self) -> dict[str, Any]:
        failure = {} if self.failure is None else {"failure": self.failure.kind, "traceback": self.failure.traceback}
        return {
            "status": "completed" if self.completed else "failed",
            "error": None if self.failure is None else self.failure.reason,
            **failure,
            "blocks": [dict(block) for block in self.blocks],
        }

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the table."""
        return [{"id": self.finalist, **block} for block in self.blocks]


@dataclass(frozen=True)
class CommitteesRecord:
    """The committees of a run's finalists."""

    key: str
    rows: Sequence[CommitteeRow]

    kind = "committees"
    name = "finalists"

    def content(self) -> dict[str, Any]:
        return {"rows": [row.row() for row in self.rows]}


@dataclass(frozen=True)
class PrunedNetwork:
    """A finalist that was pruned and trained again: a row of `pruning.parquet`."""

    id: str
    """The finalist."""
    method: str
    mask: str
    """`fields`, `random` for the control of the same sparsity, or `none` for the whole network."""
    threshold: float | None
    seed: int
    kept_of_connections: float
    """Kept weights over those of the connections that the method prunes."""
    kept_of_model: float
    val_accuracy_masked: float
    """Right after masking."""
    val_accuracy: float
    test_accuracy: float
    test_accuracy_before: float
    """Of the network before pruning."""
    epochs: int
    learning_rate: float
    num_heads: int
    depth: int
    num_conv_blocks: int
    test_images: int

    def row(self) -> dict[str, Any]:
        """The row of the table."""
        return asdict(self)


@dataclass(frozen=True)
class PruningRecord:
    """One retraining of a pruned finalist."""

    name: str
    key: str
    network: PrunedNetwork

    kind = "prunings"

    def content(self) -> dict[str, Any]:
        return {"row": self.network.row()}


Record = (
    Fingerprint
    | Settings
    | SuggestionBatch
    | DecisionRecord
    | TrialRecord
    | DroppedCheckpoint
    | LatencyRecord
    | AnalysisRecord
    | CommitteesRecord
    | PruningRecord
)

LATEST_COUNTS = ("settings", "analyses", "committees", "prunings")
"""Kinds that may be found out again: of the same name the latest counts. All others are so once and for all."""


def record_of(kind: str, name: str, key: str, content: Mapping[str, Any]) -> Record:
    """The record that was kept as `content`, by the names of today.

    Raises:
        KeyError, TypeError: It is of another version: there is no such kind, or it has other fields.
    """
    values = {field: value for field, value in content.items() if field != "recorded"}
    match kind:
        case "fingerprint":
            return Fingerprint(**values)
        case "settings":
            return Settings(SweepConfig.model_validate(values["settings"]))
        case "batches":
            return SuggestionBatch(**values)
        case "decisions":
            return DecisionRecord(**{**values, "segments": [DecidedSegment(**part) for part in values["segments"]]})
        case "trials" | "finalists" | "pauses":
            return TrialRecord(**values)
        case "drops":
            return DroppedCheckpoint(**values)
        case "latency" | "front_latency":
            return LatencyRecord(name, key, values["rows"], in_rounds=kind == "front_latency")
        case "analyses":
            return AnalysisRecord(name, key, values["blocks"], _failure_in(values))
        case "committees":
            return CommitteesRecord(key, [committee_row(row) for row in values["rows"]])
        case "prunings":
            return PruningRecord(name, key, PrunedNetwork(**values["row"]))
    raise KeyError(kind)


def _failure_in(values: Mapping[str, Any]) -> Failure | None:
    if values["status"] == "completed":
        return None
    # Version 0.1 did not tell kinds of failures apart.
    return Failure(values["error"], values.get("failure", "unexpected"), values.get("traceback"))


def trial_id(number: int) -> str:
    """Id of the search's trial with this number."""
    return f"t{number:04d}"


def finalist_id(trial: str, seed: int) -> str:
    """Id of a trial's retraining with a seed."""
    return f"{trial}-s{seed}"
