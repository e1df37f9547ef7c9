"""What came out of a run, in numbers: `summary.json`."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from lsmha.io.atomic import atomic_write_text
from lsmha.pareto import hypervolume
from orchestrator.run_folder.committee_rows import CommitteeContrast, CommitteeGroup
from orchestrator.run_folder.front import objective_values
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import TrialRecord, TrialStatus
from orchestrator.search.space import Point

if TYPE_CHECKING:  # torch takes seconds to load, and to read a run nothing else needs it
    from lsmha.data import Dataset


def write_summary(ledger: Ledger, session: Mapping[str, Any] | None = None) -> None:
    """Write `summary.json`: what came out, by the records, and what a `session` of the run says of itself; without one,
    what the last session said."""
    path = ledger.folder / "summary.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        before = {}
    now = dict(session or {})
    if "wall_seconds" in now:  # of all sessions that got as far as this
        now["wall_seconds"] = round(now["wall_seconds"] + before.get("wall_seconds", 0), 1)
    atomic_write_text(path, json.dumps({**before, **_outcome(ledger), **now}, indent=2) + "\n")


def _outcome(ledger: Ledger) -> dict[str, Any]:
    config = ledger.config
    analyzed = [record.completed for record in ledger.analyses.values()]
    return {
        "name": config.name,
        "trials": count_by_status(ledger.begun),
        "finalist_runs": count_by_status(ledger.finalists),
        "failures": _failures(ledger),
        "objectives": [objective.model_dump() for objective in config.objectives],
        "front": [record.id for record in ledger.front()],
        "hypervolume": front_hypervolume(ledger),
        "finalists": [asdict(finalist) for finalist in finalist_summary(ledger)],
        "analyses": {"completed": analyzed.count(True), "failed": analyzed.count(False)},
        "committees": _main_committees(ledger),
        "seeds": {
            "search": config.seed,
            "split": config.data.split_seed,
            "trials": config.train.seed,
            "finalists": list(config.finalists.seeds),
        },
    }


def _failures(ledger: Ledger) -> dict[str, list[str]]:
    """Ids of what failed, by the kind of failure; `unexpected` ones are faults of the program or of the machine."""
    found: dict[str, list[str]] = defaultdict(list)
    for record in [*ledger.trials, *ledger.finalists]:
        if record.failed:
            found[record.failure or "unknown"].append(record.id)
    for analysis in ledger.analyses.values():
        if analysis.failure is not None:
            found[analysis.failure.kind].append(f"analysis of {analysis.finalist}")
    return dict(sorted(found.items()))


def _main_committees(ledger: Ledger) -> list[dict[str, Any]]:
    if ledger.committees is None:
        return []
    return [row.row() for row in ledger.committees.rows if isinstance(row, CommitteeGroup | CommitteeContrast)]


@dataclass(frozen=True)
class FinalistSummary:
    """A retrained configuration over its completed seeds; standard deviations are of the sample (n - 1), None for one
    seed."""

    trial: str
    n: int
    seeds: list[int]
    val_accuracy: float
    val_accuracy_std: float | None
    test_accuracy: float
    test_accuracy_std: float | None
    epochs: int
    latency_ms: float | None
    params: int
    point: Point


def finalist_summary(ledger: Ledger) -> list[FinalistSummary]:
    """The retrained configurations, best mean validation accuracy first."""
    runs: dict[str, list[TrialRecord]] = defaultdict(list)
    for record in ledger.finalists:
        if record.completed:
            runs[record.trial].append(record)
    found = []
    for trial, records in runs.items():
        val_mean, val_std = _mean_and_std([record.val_accuracy for record in records])
        test_mean, test_std = _mean_and_std([record.test_accuracy for record in records])
        first = records[0]
        found.append(
            FinalistSummary(
                trial=trial,
                n=len(records),
                seeds=sorted(record.seed for record in records),
                val_accuracy=val_mean,
                val_accuracy_std=val_std,
                test_accuracy=test_mean,
                test_accuracy_std=test_std,
                epochs=first.epochs,
                latency_ms=first.latency_ms,
                params=first.params,
                point=first.point,
            )
        )
    return sorted(found, key=lambda finalist: -finalist.val_accuracy)


def _mean_and_std(values: Sequence[float | None]) -> tuple[float, float | None]:
    known = np.array(values, dtype=float)
    return float(known.mean()), float(known.std(ddof=1)) if len(known) > 1 else None


def front_hypervolume(ledger: Ledger) -> dict[str, Any] | None:
    """Hypervolume of the front and its reference point: the worst completed trial in each objective.

    None before two trials have been completed.
    """
    completed = [record for record in ledger.trials if record.completed]
    if len(completed) < 2:
        return None
    objectives = ledger.config.objectives
    values = objective_values(completed, objectives)
    directions = [objective.direction for objective in objectives]
    reference = [
        float(column.min() if direction == "maximize" else column.max())
        for column, direction in zip(values.T, directions, strict=True)
    ]
    return {"value": hypervolume(values, directions, reference), "reference": reference}


def count_by_status(records: Sequence[TrialRecord]) -> dict[str, int]:
    """How many training runs ended how."""
    ended = Counter(record.status for record in records)
    return {status: ended[status] for status in get_args(TrialStatus)}


def describe_dataset(dataset: Dataset) -> dict[str, Any]:
    """What a summary says of the data."""
    return {
        "name": dataset.name,
        "train_images": len(dataset.train),
        "val_images": len(dataset.val),
        "test_images": len(dataset.test),
        "num_classes": dataset.num_classes,
        "img_size": dataset.img_size,
        "test_fingerprint": dataset.fingerprint,
    }
