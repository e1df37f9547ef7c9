"""TensorBoard: event files in the run folder, a folder for each run."""

from __future__ import annotations

import io
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from ray.tune.logger import TBXLoggerCallback
from ray.tune.result import TRAINING_ITERATION
from tensorboardX import SummaryWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from orchestrator.loggers.tracked_run import LoggedSweep


class Logger(TBXLoggerCallback):
    """Ray's callback, with writers that go on where an earlier session ended."""

    def __init__(self, sweep: LoggedSweep) -> None:
        super().__init__()
        self._folder = sweep.folder / "tensorboard"

    def log_trial_start(self, trial: Any) -> None:
        trial.local_path = str(self._folder / trial.name)
        self._summary_writer_cls = partial(_Writer, after=trial.logged)
        super().log_trial_start(trial)

    def log_front(self, step: int, trial: Any, png: bytes) -> None:
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        self.log_trial_result(step, trial, {TRAINING_ITERATION: step, "front": pixels.transpose(2, 0, 1)})

    def leave(self, trial: Any) -> None:
        self._trial_writer.pop(trial).close()


class _Writer(SummaryWriter):
    """Whose `flush` really has everything in the file: tensorboardX hands events to a thread and flushes what that has
    written by then, so that a kill could take away what is noted as logged.

    It begins with the mark by which TensorBoard drops all steps behind `after` that are in older files.
    """

    def __init__(self, folder: str, *, after: int, **options: Any) -> None:
        super().__init__(folder, **options)
        events = self.file_writer.event_writer
        events.add_event = events._ev_writer.write_event
        events.add_event(Event(step=after + 1, session_log=SessionLog(status=SessionLog.START)))
