"""Weights & Biases: as `WANDB_MODE` and its other variables say, with its files in the run folder."""

from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import ray
from PIL import Image
from ray.air.integrations.wandb import WandbLoggerCallback, _WandbLoggingActor
from ray.tune.result import TRAINING_ITERATION
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.loggers.tracked_run import LoggedSweep


class _LoggingActor(_WandbLoggingActor):
    """Ray's own, which ends once the run is on disk: `finish` leaves that to a process that dies with a sweep."""

    def run(self) -> None:
        super().run()
        self._wandb.teardown()


class Logger(WandbLoggerCallback):
    """Ray's callback, by which two actors without a CPU log each run that trains; W&B takes each step of a run once."""

    _logger_actor_cls = _LoggingActor

    def __init__(self, sweep: LoggedSweep) -> None:
        self._left_behind = sweep.left_behind
        self._folder = os.environ.get("WANDB_DIR") or str(sweep.folder)
        project = os.environ.get("WANDB_PROJECT", sweep.name)
        super().__init__(project, resume="allow", reinit="finish_previous", dir=self._folder)

    def setup(self, *args: Any, **info: Any) -> None:
        super().setup()
        # Ray's own gets none of the driver's variables but the key, and warns of each restart that it may make.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        variables = {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}
        actor: Any = ray.remote(self._logger_actor_cls)
        self._remote_logger_class = actor.options(
            num_cpus=0, scheduling_strategy=here, runtime_env={"env_vars": variables}
        )

    def log_trial_start(self, trial: Any) -> None:
        # One actor at a time logs a run that has paused.
        self._wait_for([logged for run, logged in self._trial_logging_futures.items() if str(run) == str(trial)])
        self._cleanup_logging_actors()
        trial.local_path = self._folder
        super().log_trial_start(trial)

    def log_trial_end(self, trial: Any, failed: bool = False) -> None:
        """Wait for its actor, so that there are no more of them than runs, and raise what went wrong there."""
        logged = self._trial_logging_futures[trial]
        self._signal_logging_actor_stop(trial)
        self._wait_for([logged])
        self._cleanup_logging_actors()

    def log_front(self, step: int, trial: Any, png: bytes) -> None:
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        self.log_trial_result(step, trial, {TRAINING_ITERATION: step, "front": pixels})

    def leave(self, trial: Any) -> None:
        self._signal_logging_actor_stop(trial)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        self._wait_for(list(self._trial_logging_futures.values()))
        self._cleanup_logging_actors()

    def _wait_for(self, logged: list[Any]) -> None:
        # Never for long inside Ray: it must not be shut down meanwhile.
        while ray.wait(logged, num_returns=len(logged), timeout=0.2)[1]:
            if self._left_behind.is_set():
                raise TimeoutError("W&B takes longer than the session waits")
        ray.get(logged)
