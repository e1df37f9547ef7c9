"""Loggers as a sweep tells them: each step once and in order, whatever fails, is slow, or was killed before."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lsmha.config import ModelConfig, TrainConfig
from orchestrator.config.sweep import SweepConfig
from orchestrator.errors import UserError
from orchestrator.loggers import experiment_loggers
from orchestrator.loggers.experiment_loggers import ExperimentLoggers, check_loggers
from orchestrator.loggers.tracked_run import LoggedSweep, TrackedRun, hyperparameters
from orchestrator.run_folder.content_hash import content_hash
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import Fingerprint, TrialRecord
from orchestrator.search.build import build_space

CONFIG = SweepConfig(
    name="logged", space={"num_heads": [1, 2, 4], "depth": [1, 2, 3]}, loggers=("tensorboard", "mlflow")
)
SPACE = build_space(CONFIG)
EPOCH = {"train_loss": 2.0, "val_loss": 1.5, "val_accuracy": 0.25}


class Told:
    """A logger that keeps what it is told."""

    def __init__(self, sweep: LoggedSweep) -> None:
        self.sweep, self.told, self.runs = sweep, [], {}

    def setup(self) -> None:
        self.told.append("setup")

    def log_trial_start(self, trial: TrackedRun) -> None:
        self.runs[trial.name] = trial
        self.told.append(f"{trial} starts after {trial.logged}")

    def log_trial_result(self, iteration: int, trial: TrackedRun, result: dict[str, Any]) -> None:
        assert result["training_iteration"] == iteration
        final = {name: value for name, value in result.items() if "/" in name} | result.get("config", {})
        self.told.append(f"{trial} {iteration}" + (f" {final}" if final else ""))

    def log_trial_end(self, trial: TrackedRun, failed: bool = False) -> None:
        self.told.append(f"{trial} {'fails' if failed else 'ends'}")

    def log_front(self, step: int, trial: TrackedRun, png: bytes) -> None:
        assert png.startswith(b"\x89PNG")
        self.told.append(f"{trial} {step} front")

    def leave(self, trial: TrackedRun) -> None:
        self.told.append(f"{trial} is left")

    def on_experiment_end(self, trials: list[Any]) -> None:
        self.told.append("end")


class Sweep:
    """A run folder, and what the sessions of its sweep tell two loggers."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ledger = Ledger.create(folder / "run", CONFIG)
        self.ledger.begin_session(CONFIG, Fingerprint("d" * 64, 1))
        self.said: list[str] = []
        self.loggers: dict[str, list[Told]] = {"tensorboard": [], "mlflow": []}
        self._patch = monkeypatch
        for name in self.loggers:
            self.install(name, Told)

    def install(self, name: str, kind: Callable[[LoggedSweep], Told]) -> None:
        def opened(sweep: LoggedSweep) -> Told:
            self.loggers[name].append(kind(sweep))
            return self.loggers[name][-1]

        self._patch.setitem(sys.modules, f"orchestrator.loggers.{name}", SimpleNamespace(Logger=opened))  # type: ignore[arg-type]

    def session(self) -> ExperimentLoggers:
        return ExperimentLoggers(self.ledger, SPACE, self.said.append)

    def told(self, name: str = "mlflow") -> list[str]:
        """What the logger was told in the latest session."""
        return self.loggers[name][-1].told[1:]

    def record(self, run_id: str, *, epochs: int = 2, failed: bool = False, stopped: bool = False) -> TrialRecord:
        record = TrialRecord(
            id=run_id,
            trial=run_id.split("-")[0],
            key=content_hash({"run": run_id}),
            status="failed" if failed else "stopped" if stopped else "completed",
            point={"num_heads": 2, "depth": 1},
            seed=7 if "-" in run_id else 0,
            params=10,
            macs=20,
            latency_ms=1.5,
            epochs=epochs,
            seconds=3.0,
            val_accuracy=None if failed else 0.5,
            error="its loss diverged" if failed else None,
            curve=[epoch(number) for number in range(1, epochs + 1)],
        )
        self.ledger.add(record)
        return record


def epoch(number: int) -> dict[str, Any]:
    return {"epoch": number, **EPOCH}


def start(loggers: ExperimentLoggers, run_id: str) -> None:
    model, train = SPACE.build({"num_heads": 2, "depth": 1})
    loggers.started(run_id, run_id.split("-")[0], model, train)


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    return Sweep(tmp_path, monkeypatch)


FINAL = (
    "{'final/val_accuracy': 0.5, 'final/latency_ms': 1.5, 'final/params': 10, 'final/macs': 20, 'final/seconds': 3.0"
)


def test_a_run_from_its_start_to_its_end(sweep: Sweep) -> None:
    with sweep.session() as loggers:
        start(loggers, "t0000")
        loggers.epoch_ended("t0000", epoch(1))
        loggers.epoch_ended("t0000", epoch(2))
        loggers.ended(sweep.record("t0000"))
    for name in sweep.loggers:
        assert sweep.told(name) == [
            "t0000 starts after 0",
            "t0000 1",
            "t0000 2",
            f"t0000 3 {FINAL}, 'status': 'completed'}}",
            "t0000 ends",
            "sweep starts after 0",
            "sweep 1 front",
            "sweep 1",
            "sweep ends",
            "end",
        ]
    assert sweep.said == []


def test_an_epoch_told_twice_is_logged_once_and_one_after_a_gap_waits_for_the_record(sweep: Sweep) -> None:
    with sweep.session() as loggers:
        start(loggers, "t0000")
        for number in (1, 1, 2, 1, 4):
            loggers.epoch_ended("t0000", epoch(number))
        start(loggers, "t0000")  # again, elsewhere
        loggers.ended(sweep.record("t0000", epochs=4))
    steps = [told for told in sweep.told() if told.startswith("t0000 ")]
    assert steps[:5] == ["t0000 starts after 0", *(f"t0000 {number}" for number in range(1, 5))]
    assert steps[5].startswith("t0000 5 {'final/")


def test_a_failed_run(sweep: Sweep) -> None:
    with sweep.session() as loggers:
        start(loggers, "t0000")
        loggers.ended(sweep.record("t0000", epochs=0, failed=True))
    assert "'status': 'failed', 'error': 'its loss diverged'}" in sweep.told()[1]
    assert sweep.told()[2] == "t0000 fails"


def test_what_a_stopped_run_measured_is_not_final(sweep: Sweep) -> None:
    with sweep.session() as loggers:
        start(loggers, "t0000")
        loggers.ended(sweep.record("t0000", epochs=1, stopped=True))
    starts, first, outcome, end, *_ = sweep.told()
    assert (starts, first, end) == ("t0000 starts after 0", "t0000 1", "t0000 ends")
    assert "'final/latency_ms': 1.5" in outcome
    assert "'status': 'stopped'" in outcome
    assert "accuracy" not in outcome


def test_a_run_that_pauses_is_left_until_it_goes_on(sweep: Sweep) -> None:
    with sweep.session() as loggers:
        start(loggers, "t0000")
        loggers.epoch_ended("t0000", epoch(1))
        loggers.paused("t0000")
        start(loggers, "t0000")
        loggers.epoch_ended("t0000", epoch(2))
        loggers.ended(sweep.record("t0000", epochs=2))
    assert [told.partition(" {")[0] for told in sweep.told()[:7]] == [
        *("t0000 starts after 0", "t0000 1", "t0000 is left"),
        *("t0000 starts after 1", "t0000 2", "t0000 3", "t0000 ends"),
    ]


def test_the_next_session_goes_on_and_catches_up(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment_loggers, "BRIEF_WAIT_S", 60)
    with suppress(KeyboardInterrupt), sweep.session() as loggers:
        start(loggers, "t0000")
        loggers.ended(sweep.record("t0000"))
        start(loggers, "t0001")
        loggers.epoch_ended("t0001", epoch(1))
        raise KeyboardInterrupt
    assert sweep.told()[-4:] == ["sweep 1", "t0001 is left", "sweep is left", "end"]
    sweep.record("t0001", epochs=3)  # of a session that was killed before the loggers heard
    sweep.record("t0001-s7", epochs=1)
    with sweep.session():
        pass
    assert [told.partition(" {")[0] for told in sweep.told()] == [
        *("t0001 starts after 1", "t0001 2", "t0001 3", "t0001 4", "t0001 ends"),
        *("t0001-s7 starts after 0", "t0001-s7 1", "t0001-s7 2", "t0001-s7 ends"),
        *("sweep starts after 1", "sweep 2 front", "sweep 2", "sweep ends", "end"),
    ]
    first, second = sweep.loggers["mlflow"]
    assert first.sweep == second.sweep
    assert first.runs["t0001"].trial_id == second.runs["t0001"].trial_id
    assert first.runs["t0001"].config == second.runs["t0001"].config
    finalist = second.runs["t0001-s7"].config
    assert (finalist["trial"], finalist["seed"], finalist["epochs"]) == ("t0001", 7, CONFIG.finalist_epochs())
    assert sweep.loggers["tensorboard"][0].sweep.id != first.sweep.id


@pytest.mark.parametrize("method", ["setup", "log_trial_start", "log_trial_result", "log_trial_end"])
def test_a_logger_that_fails_is_said_once_and_made_up_for(sweep: Sweep, method: str) -> None:
    class Failing(Told):
        def fail(self, *_: Any, **__: Any) -> None:
            raise ConnectionError("no route to the server")

    setattr(Failing, method, Failing.fail)
    sweep.install("mlflow", Failing)
    with sweep.session() as loggers:
        start(loggers, "t0000")
        for number in (1, 2):
            loggers.epoch_ended("t0000", epoch(number))
        loggers.ended(sweep.record("t0000"))
        loggers.ended(sweep.record("t0001"))
    (said,) = sweep.said
    assert said.startswith("mlflow logs no more, the next session makes up for it: ConnectionError: no route")
    assert sweep.told("tensorboard")[-1] == "end"
    sweep.install("mlflow", Told)
    with sweep.session():
        pass
    # From the first epoch: nobody knows what the logger had kept of the run.
    assert sweep.told()[:3] == ["t0000 starts after 0", "t0000 1", "t0000 2"]
    assert "t0001 ends" in sweep.told()
    assert not any(told.startswith("t000") for told in sweep.told("tensorboard"))
    assert len(sweep.said) == 1


def test_a_logger_that_hangs_is_left_behind(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment_loggers, "WAIT_S", 0.2)
    monkeypatch.setattr(experiment_loggers, "LEAVING_S", 0.2)
    answered, started = threading.Event(), threading.Event()

    class Hanging(Told):
        def log_trial_start(self, trial: TrackedRun) -> None:
            started.set()
            answered.wait(60)
            super().log_trial_start(trial)

    sweep.install("mlflow", Hanging)
    with sweep.session() as loggers:
        loggers.ended(sweep.record("t0000"))
        assert started.wait(60)
    assert sweep.said == ["mlflow has not taken all yet: the next session makes up for it"]
    answered.set()
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "logger-mlflow"] or [None]
    if thread is not None:
        thread.join(60)
    assert "end" not in sweep.told(), "a session that has ended logs no more"


def test_hyperparameters_are_scalars_with_a_value() -> None:
    train = TrainConfig(epochs=3, grad_clip_norm=None)
    logged = hyperparameters("t0000", ModelConfig(num_heads=2), train)
    assert logged["trial"] == "t0000"
    assert (logged["num_heads"], logged["epochs"], logged["augment.flip"]) == (2, 3, False)
    assert "grad_clip_norm" not in logged
    assert all(isinstance(value, bool | int | float | str) for value in logged.values())


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb", "comet"])
def test_a_package_that_is_not_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment_loggers, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=rf"^loggers: {name} needs a package .*: pip install 'lsmha-sweep\[{name}\]'$"):
        check_loggers([name])
    check_loggers([])


def test_an_object_store_is_no_place_for_files_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiment_loggers, "is_remote", lambda _: True)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = Path("bucket/run")
    with pytest.raises(UserError, match=r"^loggers: tensorboard needs a run folder on disk, but got 'bucket/run'$"):
        check_loggers(["tensorboard"], folder)
    with pytest.raises(UserError, match=r"^loggers: mlflow needs .* on disk \(or MLFLOW_TRACKING_URI set\)"):
        check_loggers(["mlflow"], folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    check_loggers(["mlflow", "comet"], folder)
