"""Experiment trackers that follow a sweep: told what happens, each in a thread of its own, as it may have to wait."""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from typing_extensions import Self

from lsmha.config import ModelConfig, TrainConfig
from lsmha.io.paths import RunPath, is_remote
from orchestrator.errors import UserError
from orchestrator.failures import describe_error
from orchestrator.loggers.logged_runs import LoggedRuns, LogNote
from orchestrator.loggers.tracked_run import LoggedSweep, Scalar, hyperparameters
from orchestrator.reporting.plots import plot_front
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import TrialRecord
from orchestrator.search.space import SearchSpace

_PACKAGES = {"tensorboard": "tensorboardX", "mlflow": "mlflow", "wandb": "wandb", "comet": "comet_ml"}
_ELSEWHERE = {"mlflow": "MLFLOW_TRACKING_URI", "wandb": "WANDB_DIR"}
"""Variables by which loggers that write files write them elsewhere."""
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "COMET_DISABLE_AUTO_LOGGING": "1", "COMET_LOGGING_CONSOLE": "ERROR"}
"""What packages read as they are imported, and a user may set otherwise: they send and print only what is logged."""

WAIT_S, BRIEF_WAIT_S = 120.0, 3.0
"""How long a session that ends waits for its loggers, and how long one that is broken off."""
LEAVING_S = 30.0
"""How long a logger that is not waited for any longer may take to end the step that it is in."""


def check_loggers(names: Sequence[str], folder: RunPath | None = None) -> None:
    """Refuse loggers that cannot work here or not into that folder.

    Raises:
        UserError: A package is not installed, or files would be on an object store.
    """
    for name in names:
        if find_spec(_PACKAGES[name]) is None:
            raise UserError(f"loggers: {name} needs a package that is not installed: pip install 'lsmha-sweep[{name}]'")
        if folder is not None and is_remote(folder) and name != "comet":
            variable = _ELSEWHERE.get(name)
            if variable is None or variable not in os.environ:
                unless = f" (or {variable} set)" if variable else ""
                raise UserError(f"loggers: {name} needs a run folder on disk{unless}, but got {str(folder)!r}")


class ExperimentLoggers:
    """The loggers of a sweep, as a context in which they work. Nothing that happens to one disturbs the sweep.

    As it begins they catch up with what earlier sessions recorded; as it ends they are shown the front.

    Args:
        ledger: The run, in which a session has begun.
        space: What points mean.
        say: Gets a line for each logger that fails.
    """

    def __init__(self, ledger: Ledger, space: SearchSpace, say: Callable[[str], None]) -> None:
        self._ledger, self._space = ledger, space
        self._threads = [_LoggerThread(name, ledger, say) for name in ledger.config.loggers]

    def __enter__(self) -> Self:
        for record in [*self._ledger.trials, *self._ledger.finalists]:
            self.ended(record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._threads:
            ledger = self._ledger
            counts = {"trials": len(ledger.trials), "finalists": len(ledger.finalists), "on_front": len(ledger.front())}
            front = _front_as_png(ledger)
            self._tell(lambda runs: runs.session_ended(front, counts, complete=kind is None))
        deadline = time.monotonic() + (WAIT_S if kind is None else BRIEF_WAIT_S)
        for thread in self._threads:
            thread.end(deadline)

    def started(self, run_id: str, trial: str, model: ModelConfig, train: TrainConfig) -> None:
        """A training run with the configuration of `trial` begins, maybe not for the first time."""
        self._tell(lambda runs: runs.started(run_id, hyperparameters(trial, model, train)))

    def epoch_ended(self, run_id: str, metrics: Mapping[str, Any]) -> None:
        """A running one did an epoch."""
        self._tell(lambda runs: runs.epoch_ended(run_id, metrics))

    def paused(self, run_id: str) -> None:
        """A running one pauses."""
        self._tell(lambda runs: runs.paused(run_id))

    def ended(self, record: TrialRecord) -> None:
        """A training run ended, well or not."""
        self._tell(lambda runs: runs.ended(record, partial(self._hyperparameters, record)))

    def _tell(self, work: Callable[[LoggedRuns], None]) -> None:
        for thread in self._threads:
            thread.tell(work)

    def _hyperparameters(self, record: TrialRecord) -> Mapping[str, Scalar]:
        model, train = self._space.build(record.point)
        if record.is_finalist:
            train = self._ledger.config.finalist_recipe(train, record.seed)
        return hyperparameters(record.trial, model, train)


class _LoggerThread:
    """One logger, which does what it is told one after another, until it fails."""

    def __init__(self, name: str, ledger: Ledger, say: Callable[[str], None]) -> None:
        self._name, self._ledger, self._say = name, ledger, say
        self._work: SimpleQueue[Callable[[LoggedRuns], None] | None] = SimpleQueue()
        self._left_behind = threading.Event()
        self._thread = threading.Thread(target=self._do, name=f"logger-{name}", daemon=True)
        self._thread.start()

    def tell(self, work: Callable[[LoggedRuns], None]) -> None:
        if self._thread.is_alive():
            self._work.put(work)

    def end(self, deadline: float) -> None:
        """Let it finish until then; what it has not done by then, it leaves."""
        self._work.put(None)
        self._thread.join(max(0, deadline - time.monotonic()))
        if self._thread.is_alive():
            self._left_behind.set()
            self._say(f"{self._name} has not taken all yet: the next session makes up for it")
            # One that is still at work with Ray when the session leaves it would end the process with another code.
            self._thread.join(LEAVING_S)

    def _do(self) -> None:
        runs = None
        try:
            runs = self._opened()
            while (work := self._work.get()) is not None and not self._left_behind.is_set():
                work(runs)
        except Exception as error:
            if not self._left_behind.is_set():
                self._say(f"{self._name} logs no more, the next session makes up for it: {describe_error(error)}")
                with suppress(Exception):
                    if runs is not None:
                        runs.failed()

    def _opened(self) -> LoggedRuns:
        for variable, value in _QUIET.items():
            os.environ.setdefault(variable, value)
        folder = self._ledger.folder.absolute()
        note = LogNote(folder / "loggers" / f"{self._name}.json")
        sweep = LoggedSweep(note.sweep_id, self._ledger.config.name, folder, self._left_behind)
        # Only here: the packages behind them take seconds to load, and need not be there.
        return LoggedRuns(note, sweep, importlib.import_module(f"orchestrator.loggers.{self._name}").Logger(sweep))


def _front_as_png(ledger: Ledger) -> bytes | None:
    # What is wrong with it, the artifacts of the run will say.
    with suppress(Exception), TemporaryDirectory() as folder:
        plot = Path(folder, "front.png")
        plot_front(ledger, plot)
        return plot.read_bytes()
    return None
