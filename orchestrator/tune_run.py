"""Runs a searcher's jobs through Ray Tune and tells, event by event, what became of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import ray
from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from orchestrator.errors import describe_error
from orchestrator.sweep_config import ResourcesConfig
from orchestrator.trial import build_trainable


class JobEvents(Protocol):
    """What happens to a job, called in the driver, in order."""

    def started(self, job_id: str) -> None: ...

    def epoch_ended(self, job_id: str, metrics: dict[str, Any]) -> None: ...

    def completed(self, job_id: str, result: dict[str, Any]) -> None:
        """The job trained to its end; `result` is its last report."""

    def failed(self, job_id: str, reason: str) -> None:
        """The job ended without a result; `reason` is one line."""


def run_jobs(
    searcher: Searcher,
    events: JobEvents,
    *,
    name: str,
    num_jobs: int,
    resources: ResourcesConfig,
    concurrency: int,
    arrays: ray.ObjectRef,
    storage: Path,
) -> None:
    """Train the searcher's jobs, `concurrency` at a time, until it has no more or `num_jobs` have been started.

    A job whose process dies is started once more, from its last epoch; one that fails again is told as failed, and the
    others go on. `name` and `storage` say where Ray keeps its own state.
    """
    tuner = tune.Tuner(
        build_trainable(resources, arrays, storage=storage / name / "train"),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=num_jobs,
            max_concurrent_trials=concurrency,
            # A reused actor has imported torch already. DDP trials only wait in theirs.
            reuse_actors=resources.workers_per_trial == 1,
            trial_name_creator=_job_id,
            trial_dirname_creator=_job_id,
        ),
        run_config=tune.RunConfig(
            name=name,
            storage_path=str(storage),
            callbacks=[_EventCallback(events)],
            failure_config=tune.FailureConfig(max_failures=1),
            verbose=0,
        ),
    )
    tuner.fit()


class _EventCallback(tune.Callback):
    """Turns Tune's callbacks into `JobEvents`."""

    def __init__(self, events: JobEvents) -> None:
        self._events = events

    def __getstate__(self) -> dict[str, Any]:
        """Empty: Tune pickles what it is given, for a restore that never comes."""
        return {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._events.started(_job_id(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if "epoch" in result and "curve" not in result:
            self._events.epoch_ended(_job_id(trial), result)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        result = trial.last_result or {}
        if "failure" in result:
            self._events.failed(_job_id(trial), result["failure"])
        elif result.get("finished"):
            self._events.completed(_job_id(trial), result)
        else:
            self._events.failed(_job_id(trial), "the training run ended without a result")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._events.failed(_job_id(trial), describe_error(trial.get_error()))


def _job_id(trial: Trial) -> str:
    return trial.config["job"]["id"]
