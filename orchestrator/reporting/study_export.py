"""The Optuna study of a run as a file, made from the records: for optuna-dashboard and Optuna's own plots."""

from __future__ import annotations

import json
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages.journal import BaseJournalBackend, JournalStorage
from optuna.trial import TrialState

from lsmha.io.atomic import atomic_write_text
from lsmha.io.paths import RunPath
from orchestrator.config.sweep import Dimension, FloatRange, IntRange
from orchestrator.run_folder.front import objective_values
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import TrialRecord

optuna.logging.set_verbosity(optuna.logging.WARNING)


def write_study(ledger: Ledger, path: RunPath) -> None:
    """Write a study with every trial that has ended or pauses, as an Optuna journal. None but the completed ones count
    as such.

    `optuna.load_study(study_name=..., storage=JournalStorage(JournalFileBackend(path)))` reads it; the name is the
    sweep's.
    """
    backend = _Lines()
    study = optuna.create_study(
        study_name=ledger.config.name,
        directions=[objective.direction for objective in ledger.config.objectives],
        storage=JournalStorage(backend),
    )
    distributions = {name: _distribution(dimension) for name, dimension in ledger.config.space.items()}
    for record in ledger.begun:
        study.add_trial(_trial(record, ledger, distributions))
    atomic_write_text(path, "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in backend.logs))


class _Lines(BaseJournalBackend):
    """Collects what a journal file would hold, to be written in one go."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> list[dict[str, Any]]:
        return self.logs[log_number_from:]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        self.logs += logs


_STATES = {
    "completed": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "paused": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


def _trial(record: TrialRecord, ledger: Ledger, distributions: dict[str, BaseDistribution]) -> optuna.trial.FrozenTrial:
    active = {name: value for name, value in record.point.items() if value is not None}
    has_values = record.completed or record.stopped
    (values,) = objective_values([record], ledger.config.objectives).tolist() if has_values else [None]
    trained = ledger.config.trained_objective()
    metric = None if trained is None or not (record.stopped or record.paused) else trained.metric
    return optuna.trial.create_trial(
        state=_STATES[record.status],
        params=active,
        distributions={name: distributions[name] for name in active},
        values=values,
        intermediate_values={} if metric is None else {int(epoch["epoch"]): epoch[metric] for epoch in record.curve},
        user_attrs={"id": record.id, "error": record.error} if record.error else {"id": record.id},
    )


def _distribution(dimension: Dimension) -> BaseDistribution:
    if isinstance(dimension, FloatRange):
        return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
    if isinstance(dimension, IntRange):
        highest = dimension.low + (dimension.high - dimension.low) // dimension.step * dimension.step
        return IntDistribution(dimension.low, highest, step=dimension.step)
    return CategoricalDistribution(dimension)
