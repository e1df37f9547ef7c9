"""MLflow: a database in the run folder, or the server that `MLFLOW_TRACKING_URI` names."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from secrets import token_hex
from tempfile import TemporaryDirectory
from typing import Any

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient
from ray.air._internal.mlflow import _MLflowLoggerUtil
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.tune.result import TRAINING_ITERATION

from orchestrator.loggers.tracked_run import LoggedSweep

SWEEP_TAG = "lsmha_sweep"
"""By which a sweep finds its runs again: `LoggedSweep.id`."""


class Logger(MLflowLoggerCallback):
    """Ray's callback, which starts no run that is there from an earlier session."""

    def __init__(self, sweep: LoggedSweep) -> None:
        super().__init__(experiment_name=sweep.name, tags={SWEEP_TAG: sweep.id})
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of each table that it makes
        self._sweep_id = sweep.id
        self.mlflow_util = self._store = _Store(sweep)
        self._known: dict[str, str] = {}
        """Runs of earlier sessions, by what they are called in the sweep."""

    def setup(self, *args: Any, **info: Any) -> None:
        super().setup()
        self._known = self._store.runs_with(SWEEP_TAG, self._sweep_id)

    def log_trial_start(self, trial: Any) -> None:
        if (run_id := self._known.get(trial.name)) is not None:
            self._trial_runs[trial] = run_id
            self._store.go_on_with(run_id)
        super().log_trial_start(trial)

    def log_front(self, step: int, trial: Any, png: bytes) -> None:
        with TemporaryDirectory() as folder:
            Path(folder, "front.png").write_bytes(png)
            self._store.save_artifacts(folder, run_id=self._trial_runs[trial])

    def leave(self, trial: Any) -> None:
        """It stays as running, since some day it goes on."""


class _Store(_MLflowLoggerUtil):
    """Ray's access to MLflow, but with a client of its own, where Ray's changes settings of the whole process, and with
    one transaction for all that is logged at a time."""

    def __init__(self, sweep: LoggedSweep) -> None:
        super().__init__()
        uri = os.environ.get("MLFLOW_TRACKING_URI")
        self._client = MlflowClient(uri or _database_in(Path(str(sweep.folder))))
        self._artifacts = None if uri else str(sweep.folder / "mlflow-artifacts")
        """None where the server says."""
        self._last_step: dict[str, int] = {}
        """By run, of those that an earlier session began."""

    def setup_mlflow(self, *settings: Any, experiment_name: str | None = None, **more: Any) -> None:
        assert experiment_name is not None
        known = self._client.get_experiment_by_name(experiment_name)
        self.experiment_id = (
            self._client.create_experiment(experiment_name, self._artifacts) if known is None else known.experiment_id
        )

    def runs_with(self, tag: str, value: str) -> dict[str, str]:
        """Ids of the runs that are tagged so, by their names."""
        assert self.experiment_id is not None
        page = self._client.search_runs([self.experiment_id], wanted := f"tags.{tag} = '{value}'")
        runs = list(page)
        while page.token:
            page = self._client.search_runs([self.experiment_id], wanted, page_token=page.token)
            runs += page
        return {run.data.tags["trial_name"]: run.info.run_id for run in runs}

    def go_on_with(self, run_id: str) -> None:
        """Log only what the run does not have yet."""
        history = self._client.get_metric_history(run_id, TRAINING_ITERATION)
        self._last_step[run_id] = max((metric.step for metric in history), default=0)

    def log_params(self, params_to_log: dict[str, Any], run_id: str | None = None) -> None:
        assert run_id is not None
        params = [Param(name, str(value)) for name, value in params_to_log.items()]
        self._client.log_batch(run_id, params=params)

    def log_metrics(self, step: int, metrics_to_log: dict[str, Any], run_id: str | None = None) -> None:
        assert run_id is not None
        values = self._parse_dict(metrics_to_log) if step > self._last_step.get(run_id, 0) else {}
        now = round(1000 * time.time())
        metrics = [Metric(name, value, now, step) for name, value in values.items()]
        # MLflow writes these after the metrics: a session that was killed in between lacks them.
        tags = [RunTag(name, value) for name, value in metrics_to_log.get("config", {}).items()]
        self._client.log_batch(run_id, metrics, tags=tags)

    def _get_client(self) -> MlflowClient:
        return self._client

    def _run_exists(self, run_id: str) -> bool:
        return True


def _database_in(folder: Path) -> str:
    """URI of the folder's database, which is made if need be, or not at all: none could use what a kill left of one."""
    database = folder / "mlflow.db"
    if not database.exists():
        for half_made in folder.glob(".mlflow.db.*"):
            half_made.unlink()
        new = folder / f".mlflow.db.{token_hex(8)}"  # MLflow takes one of a name that it had before for made
        MlflowClient(f"sqlite:///{new}")
        os.replace(new, database)
    return f"sqlite:///{database}"
