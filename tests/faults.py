"""Faults that strike a sweep from inside its processes, at a moment that no signal from outside would meet."""

from __future__ import annotations

import importlib
import itertools
import os
import re
import signal
from collections.abc import Callable, Mapping
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
        for module, function in (
            ("orchestrator.execution.worker", "work_alone"),
            ("orchestrator.execution.ddp_worker", "work_as_rank"),
            ("orchestrator.execution.tasks", "_do"),
        ):
            setattr(importlib.import_module(module), function, _struck(self, module, function, os.getpid()))
        self._install(driver=os.getpid())

    def _install(self, driver: int) -> None:
        if self.kill is not None:
            _install_kill(self.kill, driver)
        if self.spoilt:
            _spoil_metrics(self.spoilt)


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
    worker = importlib.import_module("orchestrator.execution.worker")
    run_job = worker.run_job

    def run_job_and_spoil(job: Any, dataset: Any, *, on_event: Callable[[Any], None], **how: Any) -> None:
        how_spoilt = spoilt.get(job.id)

        def spoil(metrics: Mapping[str, Any]) -> dict[str, Any]:
            values = {"nan": float("nan"), "inf": float("inf"), "string": "a string"}
            if how_spoilt == "missing":
                return {name: value for name, value in metrics.items() if name != "val_accuracy"}
            return {**metrics, "val_accuracy": values[how_spoilt]} if how_spoilt in values else dict(metrics)

        def on_spoilt_event(event: Any) -> None:
            if isinstance(event, EpochEnded):
                event = replace(event, metrics=spoil(event.metrics))
            if isinstance(event, Completed):
                curve = tuple(spoil(metrics) for metrics in event.result.curve)
                event = replace(event, result=replace(event.result, curve=curve))
            on_event(event)

        if how_spoilt == "exception":
            raise RuntimeError("nothing ever goes well")
        if how_spoilt == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        run_job(job, dataset, on_event=on_spoilt_event, **how)

    worker.run_job = run_job_and_spoil
