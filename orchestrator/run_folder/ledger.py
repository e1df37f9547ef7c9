"""The run folder as a whole: all that was found out, in immutable records, and where everything else is."""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable

from lsmha.errors import DamagedFileError
from lsmha.io.atomic import abandoned_temporaries, atomic_path
from lsmha.io.paths import RunPath, is_remote
from orchestrator.config.sweep import SweepConfig
from orchestrator.config.yaml import dump_yaml, load_sweep_config
from orchestrator.errors import UserError
from orchestrator.interrupts import defer_interrupts
from orchestrator.run_folder.front import choose_front
from orchestrator.run_folder.legacy import content_of_today, kind_of_today
from orchestrator.run_folder.location import check_new_folder
from orchestrator.run_folder.ownership import check_owned
from orchestrator.run_folder.record_files import StoredRecord, read_records, record_path, write_record
from orchestrator.run_folder.records import (
    LATEST_COUNTS,
    AnalysisRecord,
    CommitteesRecord,
    DecisionRecord,
    DroppedCheckpoint,
    Fingerprint,
    LatencyRecord,
    PruningRecord,
    Record,
    Settings,
    SuggestionBatch,
    TrialRecord,
    record_of,
    trial_id,
)

_FOLDERS = ("records", "checkpoints", "finalists", "analysis")


class Ledger:
    """Everything a sweep has found out, on disk as soon as it is known.

    `records/` holds the truth: an immutable, checksummed file for each record, named by what was run
    (`record_files.py`). All tables can be made again from it.
    """

    def __init__(self, folder: RunPath, config: SweepConfig) -> None:
        self.folder = folder
        self.config = config
        self.fingerprint: Fingerprint | None = None
        """None before the first session got that far."""
        self.batches: list[SuggestionBatch] = []
        """In the order they were made."""
        self.decisions: list[DecisionRecord] = []
        """Likewise, where a strategy makes them."""
        self.trials: list[TrialRecord] = []
        """Those that have ended, by id, as finalists are."""
        self.pauses: dict[str, TrialRecord] = {}
        """Those that have begun and pause, by id, the latest of each."""
        self.drops: dict[str, DroppedCheckpoint] = {}
        """By trial, the latest of each."""
        self.finalists: list[TrialRecord] = []
        self.latencies: dict[str, LatencyRecord] = {}
        """By architecture, as the search measured them."""
        self.front_latencies: dict[str, LatencyRecord] = {}
        """Likewise, as measured in rounds."""
        self.analyses: dict[str, AnalysisRecord] = {}
        """By finalist, the latest."""
        self.committees: CommitteesRecord | None = None
        """The latest."""
        self.prunings: dict[str, PruningRecord] = {}
        """By retraining, the latest."""
        self._ended: dict[str, TrialRecord] = {}
        self._recorded_config: SweepConfig | None = None
        self._recorded = 0.0

    @classmethod
    def create(cls, folder: RunPath, config: SweepConfig) -> Ledger:
        """Start a new run folder with the resolved `config.yaml`.

        Raises:
            UserError: The folder exists and is not empty, or cannot be written.
        """
        check_new_folder(folder)
        ledger = cls(folder, config)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            ledger.write_config(config)
        except OSError as error:
            raise UserError(f"--out: {folder} cannot be written: {error.strerror}") from None
        return ledger

    @classmethod
    def load(cls, folder: RunPath, *, on_damaged: Callable[[RunPath], None] | None = None) -> Ledger:
        """Open an existing run folder.

        Args:
            folder: The run.
            on_damaged: Told of each damaged record, which is then left out.

        Raises:
            UserError: It is not a run folder, or, without `on_damaged`, one of its records is damaged.
        """
        folder = folder.absolute()  # workers run in folders of their own
        check_run(folder)
        found: list[tuple[RunPath, StoredRecord]] = []
        paths = sorted((folder / "records").glob("*/[!.]*.json"))  # dot files are half-written ones
        for path, read in read_records(paths):
            if not isinstance(read, DamagedFileError):
                found.append((path, read))
            elif on_damaged is None:
                raise UserError(f"RUN: {read}; `lsmha-sweep repair {folder}` sets it aside")
            else:
                on_damaged(path)
        # Of kinds of which the latest counts, it comes last.
        found.sort(key=lambda item: item[1].content.get("recorded", 0.0))  # stable: the others stay in order
        records = [(_record(path, stored), stored) for path, stored in found]
        settings = [record.config for record, _ in records if isinstance(record, Settings)]
        ledger = cls(folder, settings[-1] if settings else load_run_config(folder))
        for record, stored in records:
            ledger._remember(record, recorded=stored.content.get("recorded", 0.0))
        return ledger

    def begin_session(self, config: SweepConfig, fingerprint: Fingerprint) -> None:
        """Take note of the settings of this session, which owns the folder, and remove what a killed one half wrote."""
        remove_abandoned(self.folder)
        for name in _FOLDERS:
            (self.folder / name).mkdir(exist_ok=True)
        for path in list((self.folder / "checkpoints").glob("*.pt")):
            if path.name.partition(".")[0] in self._ended:  # a session that was killed had just recorded it
                path.unlink(missing_ok=True)
        if config != self.config:
            self.write_config(config)  # first: of the two the record counts, and growing from it is allowed
        if config != self._recorded_config:
            self.add(Settings(config))
        if self.fingerprint is None:
            self.add(fingerprint)

    def add(self, record: Record) -> None:
        """Keep a record, on disk and here.

        Raises:
            OSError: The storage is full, read-only or gone.
        """
        check_owned(self.folder)
        content, again = record.content(), record.kind in LATEST_COUNTS
        recorded = self._recorded
        if again:
            # Clocks can be set back, and those of two hosts differ; the latest is the latest.
            recorded = max(time.time(), self._recorded + 1e-3)
            content = {"recorded": recorded, **content}
        with defer_interrupts():  # what is on disk is known here, too: it ends in the tables and is counted
            write_record(self.folder / "records" / record.kind, record.name, record.key, content, replace=again)
            self._remember(record, recorded=recorded)

    @property
    def begun(self) -> list[TrialRecord]:
        """Trials that have ended and those that pause, by id."""
        return sorted([*self.trials, *self.pauses.values()], key=lambda record: record.id)

    def is_dropped(self, trial: str) -> bool:
        """Whether the state of a trial that pauses was dropped, so that it would begin anew."""
        drop = self.drops.get(trial)
        return drop is not None and drop.epochs == self.pauses[trial].epochs

    def tried(self, run_id: str) -> TrialRecord | None:
        """The record of a trial or finalist; None when it has not ended."""
        return self._ended.get(run_id)

    def ended(self, run_id: str, key: str) -> TrialRecord | None:
        """The record of a trial or finalist, if it is of just this work."""
        record = self.tried(run_id)
        return record if record is not None and record.key == key else None

    def tried_together(self) -> list[list[str]]:
        """Ids of the trials of each batch of suggestions, or of each decision that has some trained to their end."""
        to_end = [
            [part.trial for part in decision.segments if part.to_epoch == self.config.train.epochs]
            for decision in self.decisions
        ]
        return [
            *([trial_id(batch.first + place) for place in range(len(batch.points))] for batch in self.batches),
            *filter(None, to_end),
        ]

    def front(self) -> list[TrialRecord]:
        """Completed trials that no other one beats in every objective, best in the first objective first.

        Where latency was measured in rounds, that counts; once it was for all of the front, the front is chosen from
        what was measured so, and differences in latency that the rounds do not tell apart are ties.
        """
        return choose_front(self.trials, self.config.objectives, self.front_latencies)

    def record_path(self, record: Record) -> RunPath:
        """The file of a record."""
        return record_path(self.folder / "records" / record.kind, record.name, record.key)

    def checkpoint_path(self, run_id: str) -> RunPath:
        """Where an unfinished training run keeps its state."""
        return self.folder / "checkpoints" / f"{run_id}.pt"

    def finalist_folder(self, run_id: str) -> RunPath:
        """Where a finalist's weights and logits go."""
        return self.folder / "finalists" / run_id

    def analysis_folder(self, run_id: str) -> RunPath:
        """Where the analysis of a finalist goes."""
        return self.folder / "analysis" / run_id

    def write_config(self, config: SweepConfig) -> None:
        """Replace the settings for human readers; the record of them is what counts."""
        check_owned(self.folder)
        with atomic_path(self.folder / "config.yaml") as temporary:
            dump_yaml(config, temporary)
        self.config = config

    def _remember(self, record: Record, *, recorded: float) -> None:
        self._recorded = max(self._recorded, recorded)
        match record:
            case Fingerprint():
                self.fingerprint = record
            case Settings():
                self._recorded_config = record.config
            case SuggestionBatch():
                insort(self.batches, record, key=lambda batch: batch.first)
            case DecisionRecord():
                insort(self.decisions, record, key=lambda decision: decision.number)
            case TrialRecord(paused=True):
                before = self.pauses.get(record.id)
                if record.id not in self._ended and (before is None or before.epochs < record.epochs):
                    self.pauses[record.id] = record
            case TrialRecord():
                self.pauses.pop(record.id, None)
                self._ended[record.id] = record
                insort(self.finalists if record.is_finalist else self.trials, record, key=lambda other: other.id)
            case DroppedCheckpoint():
                before_it = self.drops.get(record.trial)
                if before_it is None or before_it.epochs < record.epochs:
                    self.drops[record.trial] = record
            case LatencyRecord():
                known = self.front_latencies if record.in_rounds else self.latencies
                known[record.architecture] = record
            case AnalysisRecord():
                self.analyses[record.finalist] = record
            case CommitteesRecord():
                self.committees = record
            case PruningRecord():
                self.prunings[record.name] = record


def is_run(folder: RunPath) -> bool:
    """Whether this is the folder of a run.

    Raises:
        UserError: Its object store does not say.
    """
    try:
        return (folder / "config.yaml").is_file()
    except OSError as error:
        if is_remote(folder):
            raise UserError(f"{folder} cannot be read: {error.strerror}") from None
        return False  # a name that no file system takes


def check_run(folder: RunPath) -> None:
    """Raise UserError unless this is the folder of a run."""
    if not is_run(folder):
        raise UserError(f"RUN: must be the folder of a run (with a config.yaml), but got {str(folder)!r}")


def load_run_config(folder: RunPath, overrides: list[str] | None = None) -> SweepConfig:
    """The settings of a run from its `config.yaml`, which an earlier version may have written, with overrides.

    Raises:
        UserError: The file cannot be read or is not valid, or an override is not.
    """
    return load_sweep_config(folder / "config.yaml", overrides, translate=content_of_today)


def remove_abandoned(folder: RunPath) -> list[RunPath]:
    """Remove the temporaries that killed writers left anywhere in a run folder, and return them."""
    # On an object store nothing is half written. (Python 3.10 finds files by "*/", too.)
    parts = (folder,) if is_remote(folder) else (folder, *(path for path in folder.rglob("*") if path.is_dir()))
    found = [path for part in parts for path in abandoned_temporaries(part)]
    for path in found:
        path.unlink(missing_ok=True)
    return found


def _record(path: RunPath, stored: StoredRecord) -> Record:
    try:
        return record_of(kind_of_today(path.parent.name), stored.name, stored.key, content_of_today(stored.content))
    except (KeyError, TypeError):  # whole, but with other fields
        raise UserError(f"RUN: {path} is a record of another version of lsmha-sweep") from None
