"""The Pareto front of a sweep: from what the search measured, and in the end from latencies measured in rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from lsmha.pareto import pareto_mask, pareto_mask_with_ties
from orchestrator.config.sweep import ObjectiveConfig
from orchestrator.run_folder.records import LatencyRecord, TrialRecord


def choose_front(
    trials: Sequence[TrialRecord],
    objectives: Sequence[ObjectiveConfig],
    front_latencies: Mapping[str, LatencyRecord],
) -> list[TrialRecord]:
    """The completed trials that no other one beats in every objective, best in the first objective first.

    Where an architecture's latency was measured in rounds (in `front_latencies`), that counts, and is in the
    records returned. Once it was for all of the front, the front is chosen from such trials alone, and latencies whose
    interquartile ranges overlap are ties.
    """
    completed = [with_latency_of_rounds(record, front_latencies) for record in trials if record.completed]
    values, directions = objective_values(completed, objectives), [objective.direction for objective in objectives]
    front = _sorted(completed, pareto_mask(values, directions), objectives[0])
    metrics = [objective.metric for objective in objectives]
    if "latency_ms" not in metrics or any(record.latency_p25_ms is None for record in front):
        return front
    comparable = [record for record in completed if record.latency_p25_ms is not None]
    mask = pareto_mask_with_ties(
        objective_values(comparable, objectives),
        directions,
        measured=metrics.index("latency_ms"),
        low=np.array([record.latency_p25_ms for record in comparable], dtype=float),
        high=np.array([record.latency_p75_ms for record in comparable], dtype=float),
    )
    return _sorted(comparable, mask, objectives[0])


def expected_on_front(
    trials: Sequence[TrialRecord], pauses: Sequence[TrialRecord], objectives: Sequence[ObjectiveConfig]
) -> list[TrialRecord]:
    """Trials that pause and would be on the front if they ended as predicted, best first; with what is predicted as
    what they are trained for."""
    # Only one of the two is an objective where trials pause.
    expected = [
        replace(record, val_accuracy=record.predicted, val_loss=record.predicted)
        for record in pauses
        if record.predicted is not None
    ]
    completed = [record for record in trials if record.completed]
    mask = pareto_mask(objective_values([*expected, *completed], objectives), [o.direction for o in objectives])
    return _sorted(expected, mask[: len(expected)], objectives[0])


def objective_values(records: Sequence[TrialRecord], objectives: Sequence[ObjectiveConfig]) -> np.ndarray:
    """Objective values of the records, (n, objectives)."""
    rows = [[getattr(record, objective.metric) for objective in objectives] for record in records]
    return np.array(rows, dtype=float).reshape(len(records), len(objectives))


def with_latency_of_rounds(record: TrialRecord, front_latencies: Mapping[str, LatencyRecord]) -> TrialRecord:
    """The trial with what its architecture's latency was measured to be in rounds, where it was."""
    measured = front_latencies.get(record.architecture or "")
    if measured is None:
        return record
    names = ("latency_ms", "latency_p25_ms", "latency_p75_ms")
    return replace(record, **{name: measured.first[name] for name in names})


def _sorted(records: Sequence[TrialRecord], mask: np.ndarray, first: ObjectiveConfig) -> list[TrialRecord]:
    """Those in the mask, best first."""
    sign = -1 if first.direction == "maximize" else 1
    front = [record for record, on_front in zip(records, mask, strict=True) if on_front]
    return sorted(front, key=lambda record: (sign * getattr(record, first.metric), record.id))
