"""What one logger is told of the runs of a sweep: each step once and in order, whatever becomes of the session."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

from ray.tune.result import TRAINING_ITERATION

from lsmha.io.atomic import atomic_write_text
from lsmha.io.paths import RunPath
from orchestrator.loggers.tracked_run import LoggedSweep, RunLogger, Scalar, TrackedRun
from orchestrator.run_folder.records import TrialRecord

_OF_ANY_END = ("latency_ms", "params", "macs", "seconds")
FINAL_METRICS = ("val_accuracy", "val_loss", "test_accuracy", "test_loss", *_OF_ANY_END)
"""Fields of `TrialRecord` that are logged as `final/...`, where they are known; what a run measured that did not get to
its last epoch is not final."""

SWEEP = "sweep"
"""Name of the run that shows the sweep itself."""


class LogNote:
    """How far each run has been logged, in a file of the run folder.

    A step is noted after it was logged. What a kill separates, loggers put right (`RunLogger`).
    """

    def __init__(self, path: RunPath) -> None:
        self._path = path
        if path.is_file():
            noted = json.loads(path.read_bytes())
            self.sweep_id: str = noted["sweep"]
            self.steps: dict[str, int] = noted["steps"]
            self.ended = set(noted["ended"])
        else:
            self.sweep_id, self.steps, self.ended = uuid4().hex, {}, set()
            path.parent.mkdir(exist_ok=True)
            self.save()

    def save(self) -> None:
        content = {"sweep": self.sweep_id, "steps": self.steps, "ended": sorted(self.ended)}
        atomic_write_text(self._path, json.dumps(content, indent=1) + "\n")


class LoggedRuns:
    """The runs of a sweep as one logger has them.

    Args:
        note: What earlier sessions have logged.
        sweep: Whose runs they are.
        logger: Gets them.
    """

    def __init__(self, note: LogNote, sweep: LoggedSweep, logger: RunLogger) -> None:
        self._note, self._sweep, self._logger = note, sweep, logger
        self._open: dict[str, TrackedRun] = {}
        logger.setup()

    def started(self, name: str, config: Mapping[str, Scalar]) -> None:
        """A run begins or goes on."""
        if name not in self._open and name not in self._note.ended:
            run = self._open[name] = TrackedRun(self._sweep, name, config, logged=self._note.steps.get(name, 0))
            self._logger.log_trial_start(run)

    def epoch_ended(self, name: str, metrics: Mapping[str, Any]) -> None:
        """A run that has begun did an epoch, maybe again. One that does not follow on the last waits for the record."""
        step = self._note.steps.get(name, 0) + 1
        if name in self._open and metrics["epoch"] == step:
            self._log(name, step, metrics)
            self._noted(name, step)

    def paused(self, name: str) -> None:
        """A run pauses; what the logger holds for it is free until it goes on, in this session or a later one."""
        if name in self._open:
            self._logger.leave(self._open.pop(name))

    def ended(self, record: TrialRecord, config: Callable[[], Mapping[str, Scalar]]) -> None:
        """A run ended, now or in an earlier session."""
        if record.id in self._note.ended:
            return
        self.started(record.id, config())
        for epoch in record.curve:
            if epoch["epoch"] > self._note.steps.get(record.id, 0):
                self._log(record.id, int(epoch["epoch"]), epoch)
                self._noted(record.id, int(epoch["epoch"]))
        final = FINAL_METRICS if record.completed else _OF_ANY_END
        outcome = {name: value for name in final if (value := getattr(record, name)) is not None}
        about = {"status": record.status} | ({} if record.error is None else {"error": record.error})
        # In a step of its own: that of the last epoch may have been logged long ago, and W&B takes no step twice. It is
        # noted with the end, so that a session that is killed in between does not make the next one add a step.
        step = self._note.steps.get(record.id, 0) + 1
        self._log(record.id, step, {**{f"final/{name}": value for name, value in outcome.items()}, "config": about})
        self._logger.log_trial_end(self._open[record.id], failed=record.failed)
        del self._open[record.id]
        self._note.ended.add(record.id)
        self._noted(record.id, step)

    def session_ended(self, front: bytes | None, figures: Mapping[str, float], *, complete: bool) -> None:
        """The session ends: what the sweep has found is shown in a run of its own."""
        self.started(SWEEP, {})
        step = self._note.steps.get(SWEEP, 0) + 1
        if front is not None:
            self._logger.log_front(step, self._open[SWEEP], front)
        self._log(SWEEP, step, figures)
        self._noted(SWEEP, step)
        if complete:
            self._logger.log_trial_end(self._open.pop(SWEEP))
        for run in self._open.values():
            self._logger.leave(run)
        self._logger.on_experiment_end([])

    def failed(self) -> None:
        """The logger has failed: nothing says what it has kept of open runs, so their records tell it again."""
        for name in self._open.keys() - {SWEEP}:
            self._note.steps.pop(name, None)
        self._note.save()

    def _log(self, name: str, step: int, values: Mapping[str, Any]) -> None:
        self._logger.log_trial_result(step, self._open[name], {TRAINING_ITERATION: step, **values})

    def _noted(self, name: str, step: int) -> None:
        self._note.steps[name] = step
        self._note.save()
