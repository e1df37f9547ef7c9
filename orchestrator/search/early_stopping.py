"""Trials that are ended before their last epoch, since others are more promising: by a scheduler of Ray Tune."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler

from orchestrator.config.sweep import SweepConfig


class EarlyStopping:
    """Asks a scheduler of Ray Tune after each epoch.

    Ray Tune has several trials for a training run that is tried again, and none for those of earlier sessions. So the
    scheduler gets to see stand-ins, one for each run.
    """

    def __init__(self, scheduler: TrialScheduler, *, metric: str) -> None:
        self._scheduler, self._metric = scheduler, metric
        self._epochs: dict[str, int] = {}
        """Judged so far."""
        self._lock = Lock()

    @classmethod
    def of(cls, config: SweepConfig) -> EarlyStopping | None:
        """That of a sweep's settings; None where every trial trains to its end."""
        search, objective = config.search, config.objectives[0]
        how: dict[str, Any] = {
            "time_attr": "epoch",
            "metric": objective.metric,
            "mode": "max" if objective.direction == "maximize" else "min",
            "grace_period": config.grace_epochs(),
        }
        match search.scheduler:
            case "asha":
                how |= {"max_t": config.train.epochs, "reduction_factor": search.reduction_factor}
                return cls(ASHAScheduler(**how), metric=objective.metric)
            case "median":
                # A trial is never paused for want of others to compare with.
                how |= {"min_samples_required": search.min_samples, "min_time_slice": math.inf}
                return cls(MedianStoppingRule(**how), metric=objective.metric)
        return None

    def stops(self, run_id: str, metrics: Mapping[str, Any]) -> bool:
        """Whether a run that just did an epoch is to end with it."""
        with self._lock:
            run = self._with_new_epoch(run_id, metrics)
            if run is None:
                return False
            decision = self._scheduler.on_trial_result(None, run, dict(metrics))  # type: ignore[arg-type]
        return decision == TrialScheduler.STOP

    def remember(self, run_id: str, curve: Iterable[Mapping[str, Any]]) -> None:
        """Take note of epochs that a run has behind it."""
        with self._lock:
            for metrics in curve:
                if (run := self._with_new_epoch(run_id, metrics)) is not None:
                    self._scheduler.on_trial_complete(None, run, dict(metrics))  # type: ignore[arg-type]

    def _with_new_epoch(self, run_id: str, metrics: Mapping[str, Any]) -> Any:
        """The stand-in of a run; None where the scheduler has seen the epoch, or there is nothing to see."""
        epoch, value = metrics.get("epoch"), metrics.get(self._metric)
        if not isinstance(epoch, int) or not isinstance(value, int | float) or not math.isfinite(value):
            return None  # the record will say what is wrong with it
        if epoch <= self._epochs.get(run_id, 0):  # a run that was started again may repeat one
            return None
        self._epochs[run_id] = epoch
        run: Any = _Run(run_id)
        self._scheduler.on_trial_add(None, run)  # type: ignore[arg-type]
        return run


@dataclass(frozen=True)
class _Run:
    """A training run, as far as such a scheduler looks at a trial."""

    trial_id: str
