"""Comet: as `COMET_START_ONLINE` and its other variables say, with the files of its offline mode in the run folder."""

from __future__ import annotations

import hashlib
import io
import os
from typing import Any

import comet_ml
from comet_ml.config import set_global_experiment
from PIL import Image
from ray.air.integrations.comet import CometLoggerCallback

from lsmha.io.paths import is_remote
from orchestrator.loggers.tracked_run import LoggedSweep


class Logger(CometLoggerCallback):
    """Ray's callback, with experiments that go on where an earlier session ended."""

    def __init__(self, sweep: LoggedSweep) -> None:
        folder = os.environ.get("COMET_OFFLINE_DIRECTORY") or (
            None if is_remote(sweep.folder) else str(sweep.folder / "comet")
        )
        super().__init__(
            tags=[sweep.name], offline_directory=folder, display_summary_level=0, log_code=False, log_env_details=False
        )

    def log_trial_start(self, trial: Any) -> None:
        if trial not in self._trial_experiments:
            self._trial_experiments[trial] = comet_ml.start(
                project_name=os.environ.get("COMET_PROJECT_NAME", trial.sweep.name),
                experiment_key=hashlib.sha256(trial.trial_id.encode()).hexdigest()[:32],
                mode="get_or_create",
                experiment_config=comet_ml.ExperimentConfig(**self.experiment_kwargs),
            )
            set_global_experiment(None)  # there may be several, as in Ray's callback
        super().log_trial_start(trial)

    def log_front(self, step: int, trial: Any, png: bytes) -> None:
        self._trial_experiments[trial].log_image(Image.open(io.BytesIO(png)), name="front", step=step)

    def leave(self, trial: Any) -> None:
        self.log_trial_end(trial)
