"""The run folder: immutable records of all that was found out, and the Parquet tables that follow from them."""

from __future__ import annotations

import time
from bisect import insort
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from lsmha.errors import DamagedFileError
from lsmha.io.atomic import abandoned_temporaries, atomic_path
from lsmha.io.paths import RunPath, is_remote
from lsmha.io.tables import write_table
from orchestrator.config.sweep import SweepConfig
from orchestrator.config.yaml import dump_yaml, load_sweep_config, plain_settings
from orchestrator.errors import UserError
from orchestrator.interrupts import interrupts_held_back
from orchestrator.run_folder.content_hash import key_of
from orchestrator.run_folder.front import choose_front
from orchestrator.run_folder.location import check_new_folder
from orchestrator.run_folder.ownership import check_owned
from orchestrator.run_folder.record_files import Record, read_records, record_path, write_record
from orchestrator.run_folder.records import Origin, TrialRecord, Wave

_FOLDERS = ("records", "checkpoints", "finalists", "analysis")


class Ledger:
    """Everything a sweep has found out, on disk as soon as it is known.

    `records/` holds the truth: an immutable, checksummed file for each wave of proposals, trial, finalist, latency,
    analysis, committee and pruning, named by what was run (`record_files.py`). All tables can be made again from it.
    """

    def __init__(self, folder: RunPath, config: SweepConfig) -> None:
        self.folder = folder
        self.config = config
        self.origin: Origin | None = None
        """What the run's results depend on besides its settings; None before the first session got that far."""
        self.waves: list[Wave] = []
        """Proposals in the order they were made."""
        self.trials: list[TrialRecord] = []
        """By id, as finalists are."""
        self.finalists: list[TrialRecord] = []
        self.latencies: dict[str, list[dict[str, Any]]] = {}
        """Rows by architecture, as the search measured it."""
        self.front_latencies: dict[str, list[dict[str, Any]]] = {}
        """Likewise, as measured in rounds."""
        self.analyses: dict[str, dict[str, Any]] = {}
        """By finalist, the latest: `key`, `status`, `error`, and the rows of its blocks."""
        self.committees: list[dict[str, Any]] = []
        """Rows of the latest committees."""
        self.committees_key: str | None = None
        self.prunings: dict[str, dict[str, Any]] = {}
        """Rows by retraining, the latest."""
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
        found: list[tuple[RunPath, Record]] = []
        paths = sorted((folder / "records").glob("*/[!.]*.json"))  # dot files are half-written ones
        for path, record in read_records(paths):
            if not isinstance(record, DamagedFileError):
                found.append((path, record))
            elif on_damaged is None:
                raise UserError(f"RUN: {record}; `lsmha-sweep repair {folder}` sets it aside")
            else:
                on_damaged(path)
        # Of analyses, committees and prunings the latest counts.
        found.sort(key=lambda one: one[1].content.get("recorded", 0.0))  # stable: the others stay in order
        settings = [record.content["settings"] for path, record in found if path.parent.name == "settings"]
        config = SweepConfig.model_validate(settings[-1]) if settings else load_sweep_config(folder / "config.yaml")
        ledger = cls(folder, config)
        for path, record in found:
            try:
                ledger._take(path.parent.name, record)
            except TypeError:  # whole, but with other fields
                raise UserError(f"RUN: {path} is a record of another version of lsmha-sweep") from None
        return ledger

    def begin_session(self, config: SweepConfig, origin: Origin) -> None:
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
            settings = plain_settings(config)
            self._add_latest("settings", "run", key_of(settings), {"settings": settings})
        if self.origin is None:
            self._add("origin", "run", origin.key, asdict(origin))

    def add_wave(self, wave: Wave) -> None:
        """Record proposals, before any of them is tried."""
        self._add("waves", f"w{wave.first:04d}", key_of(asdict(wave)), asdict(wave))

    def add_trial(self, record: TrialRecord) -> None:
        """Record an ended trial of the search."""
        self._add("trials", record.id, record.key, asdict(record))

    def add_finalist(self, record: TrialRecord) -> None:
        """Record an ended finalist."""
        self._add("finalists", record.id, record.key, asdict(record))

    def tried(self, run_id: str) -> TrialRecord | None:
        """The record of a trial or finalist; None when it has not ended."""
        return self._ended.get(run_id)

    def ended(self, run_id: str, key: str) -> TrialRecord | None:
        """The record of a trial or finalist, if it is of just this work."""
        record = self.tried(run_id)
        return record if record is not None and record.key == key else None

    def add_latency(self, architecture: str, key: str, rows: list[dict[str, Any]]) -> None:
        """Record the latency rows of one architecture."""
        self._add("latency", architecture, key, {"rows": rows})

    def add_front_latency(self, architecture: str, key: str, rows: list[dict[str, Any]]) -> None:
        """Record the latency rows of one architecture, measured in rounds."""
        self._add("front_latency", architecture, key, {"rows": rows})

    def add_analysis(self, run_id: str, key: str, blocks: list[dict[str, Any]], *, error: str | None = None) -> None:
        """Record the analysis of a finalist, or why there is none; the latest counts."""
        content = {"status": "failed" if error else "completed", "error": error, "blocks": blocks}
        self._add_latest("analyses", run_id, key, content)

    def set_committees(self, key: str, rows: list[dict[str, Any]]) -> None:
        """Record the committees of the finalists; the latest count."""
        self._add_latest("committees", "finalists", key, {"rows": rows})

    def add_pruning(self, job_id: str, key: str, row: dict[str, Any]) -> None:
        """Record a pruned network; of the same name, the latest counts."""
        self._add_latest("prunings", job_id, key, {"row": row})

    def front(self) -> list[TrialRecord]:
        """Completed trials that no other one beats in every objective, best in the first objective first.

        Where latency was measured in rounds, that counts; once it was for all of the front, the front is chosen from
        what was measured so, and differences in latency that the rounds do not tell apart are ties.
        """
        return choose_front(self.trials, self.config.objectives, self.front_latencies)

    def write_tables(self) -> None:
        """Write every Parquet table anew, each atomically.

        Raises:
            OSError: The storage is full, read-only or gone.
        """
        check_owned(self.folder)
        for name, rows in self._tables().items():
            write_table(self.folder / f"{name}.parquet", rows)

    def _tables(self) -> dict[str, list[dict[str, Any]]]:
        """Rows by table; those of later stages only where there are any."""
        ended = self.trials + self.finalists
        always = {
            "trials": [record.row() for record in self.trials],
            "front": [record.row() for record in self.front()],
            "finalists": [record.row() for record in self.finalists],
            "latency": [
                row
                for latencies in (self.latencies, self.front_latencies)
                for _, rows in sorted(latencies.items())
                for row in rows
            ],
            "curves": [{"id": record.id, **epoch} for record in ended for epoch in record.curve],
        }
        later = {
            "analysis": [{"id": name, **row} for name, one in sorted(self.analyses.items()) for row in one["blocks"]],
            "pruning": [row for _, row in sorted(self.prunings.items())],
            "committees": self.committees,
        }
        return always | {name: rows for name, rows in later.items() if rows}

    def record_path(self, kind: str, name: str, key: str) -> RunPath:
        """The file of a record."""
        return record_path(self.folder / "records" / kind, name, key)

    def checkpoint_path(self, run_id: str) -> RunPath:
        """Where an unfinished training run keeps its state."""
        return self.folder / "checkpoints" / f"{run_id}.pt"

    def finalist_folder(self, run_id: str) -> RunPath:
        """Where a finalist's weights and test logits go."""
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

    def _add_latest(self, kind: str, name: str, key: str, content: dict[str, Any]) -> None:
        # Clocks can be set back, and those of two hosts differ; the latest is the latest.
        self._recorded = max(time.time(), self._recorded + 1e-3)
        self._add(kind, name, key, {"recorded": self._recorded, **content}, replace=True)

    def _add(self, kind: str, name: str, key: str, content: dict[str, Any], *, replace: bool = False) -> None:
        check_owned(self.folder)
        folder = self.folder / "records" / kind
        with interrupts_held_back():  # what is on disk is known here, too: it ends in the tables and is counted
            write_record(folder, name, key, content, replace=replace)
            self._take(kind, Record(name, key, content))

    def _take(self, kind: str, record: Record) -> None:
        """Know what a record says."""
        name, key, content = record
        self._recorded = max(self._recorded, content.get("recorded", 0.0))
        match kind:
            case "origin":
                self.origin = Origin(**content)
            case "settings":
                self._recorded_config = SweepConfig.model_validate(content["settings"])
            case "waves":
                insort(self.waves, Wave(**content), key=lambda wave: wave.first)
            case "trials" | "finalists":
                ended = TrialRecord(**content)
                self._ended[name] = ended
                insort(self.trials if kind == "trials" else self.finalists, ended, key=lambda one: one.id)
            case "latency":
                self.latencies[name] = content["rows"]
            case "front_latency":
                self.front_latencies[name] = content["rows"]
            case "analyses":
                self.analyses[name] = {"key": key, **content}
            case "committees":
                self.committees, self.committees_key = content["rows"], key
            case "prunings":
                self.prunings[name] = content["row"]


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


def remove_abandoned(folder: RunPath) -> list[RunPath]:
    """Remove the temporaries that killed writers left anywhere in a run folder, and return them."""
    # On an object store nothing is half written.
    parts = (folder,) if is_remote(folder) else (folder, *folder.rglob("*/"))
    found = [path for part in parts for path in abandoned_temporaries(part)]
    for path in found:
        path.unlink(missing_ok=True)
    return found
