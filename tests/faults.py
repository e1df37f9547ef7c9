"""Faults that strike a sweep from inside its processes, at a moment that no signal from outside would meet."""

from __future__ import annotations

import importlib
import itertools
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import ray

from orchestrator.execution.training_job import Completed, EpochEnded

Phase = Literal["half written", "before the rename", "after the rename"]
Spoilt = Literal["nan", "inf", "string", "missing", "exception", "kill"]


@dataclass(frozen=True)
class Kill:
    """SIGKILL while a file is written: of the driver and the process that writes, or of that process alone."""

    file: str
    """Regular expression for its path."""
    phase: Phase
    count: int = 1
    """Strikes at this one of the files that a process writes to such a path."""
    writer_only: bool = False
    once: Path | None = None
    """A file that is made when it strikes: it does so once, in whatever process."""


@dataclass(frozen=True)
class Fault:
    """What strikes the processes of one session."""

    kill: Kill | None = None
    spoilt: Mapping[str, Spoilt] = field(default_factory=dict)
    """By trial, what becomes of its metrics or of the process that trains it."""

    def install_in_driver(self) -> None:
        """Strike in this process, and in all workers and tasks that it starts."""
        # Workers get this module as it is, since they cannot import it.
        ray.cloudpickle.register_pickle_by_value(importlib.import_module(__name__))
        driver = os.getpid()
        engine = importlib.import_module("orchestrator.execution.engine")
        engine.TrainingTrial = _struck_trial(self, engine.TrainingTrial, driver)
        self._strike("orchestrator.execution.tasks", "_do", driver)
        self._install(driver)

    def _strike(self, module: str, function: str, driver: int) -> None:
        """Replace a function, that other processes will run, by one that installs the fault there first."""
        setattr(importlib.import_module(module), function, _struck(self, module, function, driver))

    def _install(self, driver: int) -> None:
        if self.kill is not None:
            _install_kill(self.kill, driver)
        if self.spoilt:
            _spoil_metrics(self.spoilt)


def _struck_trial(fault: Fault, trial: type[Any], driver: int) -> type[Any]:
    """The trial, with the fault installed in the actor that it becomes, and in its ranks."""

    class TrainingTrial(trial):  # type: ignore[misc]  # processes go by the name of the class
        def setup(self, config: dict[str, Any], **parameters: Any) -> None:
            fault._install(driver)
            fault._strike("orchestrator.execution.ranks.rank_group", "work_as_rank", driver)
            super().setup(config, **parameters)

    return TrainingTrial


def _struck(fault: Fault, module: str, function: str, driver: int) -> Callable[..., Any]:
    """The function of that name, with the fault installed in the worker that runs it."""

    def run(*arguments: Any) -> Any:
        original = getattr(importlib.import_module(module), function)
        if not os.environ.get("FAULT_INSTALLED"):
            os.environ["FAULT_INSTALLED"] = "yes"  # in this process alone: workers have no children of ours
            fault._install(driver)
        return original(*arguments)

    return run


def _install_kill(kill: Kill, driver: int) -> None:
    replace, write, counter = os.replace, os.write, itertools.count(1)

    def strikes(path: Any) -> bool:
        if not re.search(kill.file, str(path)) or next(counter) != kill.count:
            return False
        if kill.once is None:
            return True
        try:
            kill.once.touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def die() -> None:
        if not kill.writer_only:
            os.kill(driver, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)

    def replace_or_die(source: Any, target: Any) -> None:
        if strikes(target):
            if kill.phase == "half written":
                os.truncate(source, os.path.getsize(source) // 2)
            if kill.phase == "after the rename":
                replace(source, target)
            die()
        replace(source, target)

    def write_or_die(descriptor: int, content: bytes) -> int:
        """For what is written in place, which has no rename: before, or after, is that of the writing."""
        if strikes(os.readlink(f"/proc/self/fd/{descriptor}")):
            written = {"half written": len(content) // 2, "before the rename": 0, "after the rename": len(content)}
            write(descriptor, content[: written[kill.phase]])
            die()
        return write(descriptor, content)

    os.replace, os.write = replace_or_die, write_or_die


def _spoil_metrics(spoilt: Mapping[str, Spoilt]) -> None:
    trial = importlib.import_module("orchestrator.execution.trial")
    train_jobs = trial.train_jobs

    def train_jobs_and_spoil(jobs: Any, dataset: Any, **how: Any) -> Iterator[list[Any]]:
        (job,) = jobs
        how_spoilt = spoilt.get(job.id)

        def spoil(metrics: Mapping[str, Any]) -> dict[str, Any]:
            values = {"nan": float("nan"), "inf": float("inf"), "string": "a string"}
            if how_spoilt == "missing":
                return {name: value for name, value in metrics.items() if name != "val_accuracy"}
            return {**metrics, "val_accuracy": values[how_spoilt]} if how_spoilt in values else dict(metrics)

        def spoilt_event(event: Any) -> Any:
            if isinstance(event, EpochEnded):
                return replace(event, metrics=spoil(event.metrics))
            if isinstance(event, Completed):
                curve = tuple(spoil(metrics) for metrics in event.result.curve)
                return replace(event, result=replace(event.result, curve=curve))
            return event

        if how_spoilt == "exception":
            raise RuntimeError("nothing ever goes well")
        if how_spoilt == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        for events in train_jobs(jobs, dataset, **how):
            yield [spoilt_event(event) for event in events]

    trial.train_jobs = train_jobs_and_spoil
