"""The run folder: one atomic record per ended training run, and the Parquet tables derived from the records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lsmha.atomic import atomic_path, atomic_write_text
from lsmha.pareto import pareto_mask
from lsmha.tables import write_table
from orchestrator.errors import UserError
from orchestrator.records import TrialRecord
from orchestrator.sweep_config import ObjectiveConfig, SweepConfig
from orchestrator.sweep_yaml import dump_yaml


class Ledger:
    """Everything a sweep has found out, on disk as soon as it is known.

    `records/` holds the truth, a JSON file per trial, finalist, latency and analysis and one for the committees; the
    tables can be made again from it.
    """

    def __init__(self, folder: Path, config: SweepConfig) -> None:
        self.folder = folder
        self.config = config
        self.trials: list[TrialRecord] = []
        self.finalists: list[TrialRecord] = []
        self.latencies: list[dict[str, Any]] = []
        self.analyses: dict[str, dict[str, Any]] = {}
        """By finalist: `status`, `error`, and the rows of its blocks."""
        self.committees: list[dict[str, Any]] = []
        self.prunings: dict[str, dict[str, Any]] = {}
        """Rows by retraining."""

    @classmethod
    def create(cls, folder: Path, config: SweepConfig) -> Ledger:
        """Start a new run folder with the resolved `config.yaml`.

        Raises:
            UserError: The folder exists and is not empty, or cannot be written.
        """
        check_new_folder(folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(folder / "config.yaml") as temporary:
                dump_yaml(config, temporary)
        except OSError as error:
            raise UserError(f"--out: {folder} cannot be written: {error.strerror}") from None
        return cls(folder, config)

    @classmethod
    def load(cls, folder: Path) -> Ledger:
        """Open an existing run folder.

        Raises:
            UserError: It is not a run folder, or one of its records cannot be read.
        """
        from orchestrator.sweep_yaml import load_sweep_config

        folder = folder.absolute()  # workers run in folders of their own
        if not (folder / "config.yaml").is_file():
            raise UserError(f"RUN: must be the folder of a run (with a config.yaml), but got {str(folder)!r}")
        ledger = cls(folder, load_sweep_config(folder / "config.yaml"))
        for path in sorted((folder / "records").glob("*/[!.]*.json")):  # dot files are half-written ones
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                ledger._take(path.parent.name, path.stem, content)
            except (ValueError, TypeError) as error:
                raise UserError(f"RUN: record {path} cannot be read: {error}") from None
        return ledger

    def add_trial(self, record: TrialRecord) -> None:
        """Record an ended trial of the search."""
        self._add("trials", record)

    def add_finalist(self, record: TrialRecord) -> None:
        """Record an ended finalist."""
        self._add("finalists", record)

    def add_latency(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Record the latency rows of one architecture."""
        self.latencies += rows
        self._write_json(f"latency/{name}.json", rows)

    def add_analysis(self, run_id: str, blocks: list[dict[str, Any]], *, error: str | None = None) -> None:
        """Record the analysis of a finalist, or why there is none."""
        content = {"status": "failed" if error else "completed", "error": error, "blocks": blocks}
        self._write_json(f"analyses/{run_id}.json", content)
        self.analyses[run_id] = content

    def set_committees(self, rows: list[dict[str, Any]]) -> None:
        """Record the committees of the finalists; they replace earlier ones."""
        self._write_json("committees/finalists.json", rows)
        self.committees = rows

    def add_pruning(self, job_id: str, row: dict[str, Any]) -> None:
        """Record a pruned network, in place of an earlier one of the same name."""
        self._write_json(f"prunings/{job_id}.json", row)
        self.prunings[job_id] = row

    def front(self) -> list[TrialRecord]:
        """Completed trials that no other one beats in every objective, best in the first objective first."""
        return pareto_front(self.trials, self.config.objectives)

    def write_tables(self) -> None:
        """Write every Parquet table anew, each atomically."""
        write_table(self.folder / "trials.parquet", [record.row() for record in self.trials])
        write_table(self.folder / "front.parquet", [record.row() for record in self.front()])
        write_table(self.folder / "finalists.parquet", [record.row() for record in self.finalists])
        write_table(self.folder / "latency.parquet", self.latencies)
        if self.analyses:
            blocks = [{"id": run_id, **row} for run_id, one in sorted(self.analyses.items()) for row in one["blocks"]]
            write_table(self.folder / "analysis.parquet", blocks)
        if self.prunings:
            write_table(self.folder / "pruning.parquet", [row for _, row in sorted(self.prunings.items())])
        if self.committees:
            write_table(self.folder / "committees.parquet", self.committees)
        curves = [{"id": record.id, **epoch} for record in self.trials + self.finalists for epoch in record.curve]
        write_table(self.folder / "curves.parquet", curves)

    def checkpoint_path(self, run_id: str) -> Path:
        """Where an unfinished training run keeps its state."""
        return self.folder / "checkpoints" / f"{run_id}.pt"

    def finalist_folder(self, run_id: str) -> Path:
        """Where a finalist's weights and test logits go."""
        return self.folder / "finalists" / run_id

    def analysis_folder(self, run_id: str) -> Path:
        """Where the analysis of a finalist goes."""
        return self.folder / "analysis" / run_id

    def _take(self, kind: str, name: str, content: Any) -> None:
        if kind == "latency":
            self.latencies += content
        elif kind == "analyses":
            self.analyses[name] = content
        elif kind == "prunings":
            self.prunings[name] = content
        elif kind == "committees":
            self.committees = content
        else:
            self._records(kind).append(TrialRecord(**content))

    def _add(self, kind: str, record: TrialRecord) -> None:
        self._write_json(f"{kind}/{record.id}.json", asdict(record))
        self._records(kind).append(record)
        self.checkpoint_path(record.id).unlink(missing_ok=True)

    def _records(self, kind: str) -> list[TrialRecord]:
        return {"trials": self.trials, "finalists": self.finalists}[kind]

    def _write_json(self, name: str, content: Any) -> None:
        atomic_write_text(self.folder / "records" / name, json.dumps(content, indent=1, allow_nan=False) + "\n")


def check_new_folder(folder: Path) -> None:
    """Raise UserError when a run folder is taken."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out: must be a new or empty folder, but {str(folder)!r} exists")


def pareto_front(records: Sequence[TrialRecord], objectives: Sequence[ObjectiveConfig]) -> list[TrialRecord]:
    """The records that no other one beats in every objective, best in the first objective first."""
    completed = [record for record in records if record.completed]
    values = objective_values(completed, objectives)
    mask = pareto_mask(values, [objective.direction for objective in objectives])
    sign = -1 if objectives[0].direction == "maximize" else 1
    front = [(sign * row[0], record) for row, record, on_front in zip(values, completed, mask, strict=True) if on_front]
    return [record for _, record in sorted(front, key=lambda pair: (pair[0], pair[1].id))]


def objective_values(records: Sequence[TrialRecord], objectives: Sequence[ObjectiveConfig]) -> np.ndarray:
    """Objective values of the records, (n, objectives)."""
    rows = [[getattr(record, objective.metric) for objective in objectives] for record in records]
    return np.array(rows, dtype=float).reshape(len(records), len(objectives))
