"""What a worker's log and its process's name say of a job."""

from __future__ import annotations

import re

import pytest
from ray import _raylet

from orchestrator.execution.training_job import (
    Completed,
    Disturbed,
    EpochEnded,
    Failed,
    Started,
    TrainingResult,
    Warned,
)
from orchestrator.execution.worker_log import log_event, shown_as
from orchestrator.failures import Failure


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Lines logged, without their times."""
    found = []
    for line in capsys.readouterr().out.splitlines():
        time, _, rest = line.partition(" t0007: ")
        assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", time)
        found.append(rest)
    return found


def test_a_line_for_each_event(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = {"epoch": 1, "val_accuracy": 0.123456, "images_per_s": "not a\nnumber"}
    curve = ({"epoch": 1}, {"epoch": 2, "val_loss": 1.0})
    with shown_as("t0007"):
        log_event(Started("t0007"))
        log_event(EpochEnded("t0007", metrics, gpu_memory_gib=1.5, utilization=0.5))
        log_event(Warned("t0007", "a file\nis damaged"))
        log_event(Disturbed("t0007", "chosen beside other work"))
        log_event(Completed("t0007", TrainingResult(curve, "fp32", "sdpa", "cpu", {"test_accuracy": 0.5})))
        log_event(Failed("t0007", Failure("no more", "diverged")))
    assert lines(capsys) == [
        "started",
        "epoch=1 val_accuracy=0.12346 images_per_s=not a number gpu_memory_gib=1.5 utilization=0.5",
        "warning a file is damaged",
        "disturbed chosen beside other work",
        "completed epoch=2 val_loss=1 precision=fp32 attention=sdpa train_device=cpu test_accuracy=0.5",
        "failed no more",
    ]


def test_the_process_is_called_by_its_job(capsys: pytest.CaptureFixture[str]) -> None:
    title = _raylet.getproctitle()
    titles = []

    def work() -> None:
        with shown_as("t0007"):
            titles.append(_raylet.getproctitle())
            raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        work()
    assert titles == [f"{title}:t0007"]
    assert _raylet.getproctitle() == title
    assert lines(capsys) == ["broken off RuntimeError: no more"]


def test_a_job_goes_on_where_nothing_can_be_logged_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("builtins.print", full)
    monkeypatch.delattr(_raylet, "setproctitle")
    with shown_as("t0007"):
        log_event(EpochEnded("t0007", {}))
