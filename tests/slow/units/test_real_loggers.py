"""TensorBoard, MLflow and Comet for real: what they have is read back after a kill at the worst moment."""

from __future__ import annotations

import importlib
import inspect
import io
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from logged_runs import LoggedRun, comet_sessions, mlflow_runs, tensorboard_runs
from PIL import Image
from ray.air._internal.mlflow import _MLflowLoggerUtil
from ray.air.integrations.comet import CometLoggerCallback
from ray.air.integrations.mlflow import MLflowLoggerCallback
from ray.air.integrations.wandb import WandbLoggerCallback
from ray.tune.logger import TBXLoggerCallback
from tensorboardX import SummaryWriter
from tensorboardX.event_file_writer import EventFileWriter

from orchestrator.loggers.logged_runs import LoggedRuns, LogNote
from orchestrator.loggers.tracked_run import LoggedSweep
from orchestrator.run_folder.records import TrialRecord

CURVE = [{"epoch": number, "val_accuracy": number / 8, "train_loss": 1 / number} for number in range(1, 5)]
CONFIG = {"trial": "t0000", "num_heads": 2, "learning_rate": 0.5, "augment.flip": False}


def record(run_id: str, **outcome: Any) -> TrialRecord:
    return TrialRecord(
        id=run_id,
        trial=run_id,
        key="k",
        point={},
        seed=0,
        params=10,
        macs=20,
        latency_ms=1.5,
        epochs=4,
        seconds=2.0,
        curve=CURVE,
        **{"status": "completed", "val_accuracy": 0.5, "test_accuracy": 0.25, **outcome},
    )


def front() -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), 200, np.uint8)).save(file, "png")
    return file.getvalue()


def sessions_with_a_kill_between(name: str, folder: Path) -> None:
    """One that is killed right after an epoch, and a final result, were logged and before that was noted; another."""
    note = folder / "loggers" / f"{name}.json"

    def opened() -> LoggedRuns:
        time.sleep(1 - time.time() % 1)  # event files are named by the second, in which no two sessions begin
        noted = LogNote(note)
        sweep = LoggedSweep(noted.sweep_id, "watched", folder)
        return LoggedRuns(noted, sweep, importlib.import_module(f"orchestrator.loggers.{name}").Logger(sweep))

    runs = opened()
    for run_id in ("t0000", "t0001"):
        runs.started(run_id, CONFIG)
        for epoch in CURVE[:2]:
            runs.epoch_ended(run_id, epoch)
    before = note.read_bytes()
    runs.epoch_ended("t0000", CURVE[2])
    runs.ended(
        record("t0001", status="failed", val_accuracy=None, test_accuracy=None, error="its loss diverged"),
        lambda: CONFIG,
    )
    note.write_bytes(before)

    runs = opened()
    runs.ended(
        record("t0001", status="failed", val_accuracy=None, test_accuracy=None, error="its loss diverged"),
        lambda: CONFIG,
    )
    runs.started("t0000", CONFIG)
    runs.epoch_ended("t0000", CURVE[2])
    runs.ended(record("t0000"), lambda: CONFIG)
    runs.session_ended(front(), {"trials": 2}, complete=True)
    runs = opened()
    runs.session_ended(front(), {"trials": 2}, complete=True)


@pytest.fixture
def no_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What loggers read of the environment, and nothing of this machine's."""
    for variable in ("MLFLOW_TRACKING_URI", "COMET_PROJECT_NAME", "COMET_OFFLINE_DIRECTORY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    monkeypatch.setenv("COMET_START_ONLINE", "0")
    monkeypatch.setenv("COMET_DISABLE_AUTO_LOGGING", "1")
    return


def assert_logged(run: LoggedRun, *, completed: bool) -> None:
    """Each epoch once, and the result as one step more."""
    assert run.metrics["val_accuracy"] == [(number, number / 8) for number in range(1, 5)]
    assert [step for step, _ in run.metrics["train_loss"]] == [1, 2, 3, 4]
    final = {name: value for name, value in run.metrics.items() if name.startswith("final/")}
    accuracies = {"final/val_accuracy": [(5, 0.5)], "final/test_accuracy": [(5, 0.25)]}
    assert final == {
        **(accuracies if completed else {}),
        "final/latency_ms": [(5, 1.5)],
        "final/params": [(5, 10)],
        "final/macs": [(5, 20)],
        "final/seconds": [(5, 2.0)],
    }


@pytest.mark.usefixtures("no_server")
def test_tensorboard(tmp_path: Path) -> None:
    sessions_with_a_kill_between("tensorboard", tmp_path)
    runs = tensorboard_runs(tmp_path / "tensorboard")
    assert set(runs) == {"t0000", "t0001", "sweep"}
    for name in ("t0000", "t0001"):
        assert_logged(runs[name], completed=name == "t0000")
        assert runs[name].params == {**CONFIG}
    assert runs["sweep"].metrics["trials"] == [(1, 2.0), (2, 2.0)]
    assert runs["sweep"].images == ["ray/tune/front"]


@pytest.mark.usefixtures("no_server")
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")  # MLflow 3.17 on SQLAlchemy 2.1
def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    sessions_with_a_kill_between("mlflow", tmp_path / "run")
    runs = mlflow_runs(tmp_path / "run" / "mlflow.db", "watched")
    assert set(runs) == {"t0000", "t0001", "sweep"}
    for name, status, error in (("t0000", "FINISHED", ""), ("t0001", "FAILED", "its loss diverged")):
        assert_logged(runs[name], completed=status == "FINISHED")
        assert runs[name].params == {key: str(value) for key, value in CONFIG.items()}
        assert (runs[name].status, runs[name].error) == (status, error)
    assert runs["sweep"].images == ["front.png"]
    assert runs["sweep"].status == "FINISHED"
    assert [path.name for path in tmp_path.iterdir()] == ["run"], "nothing is written elsewhere"
    import mlflow  # loaded by now

    assert "run" not in mlflow.get_tracking_uri(), "the settings of the process stay as they are"


@pytest.mark.usefixtures("no_server")
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")
def test_an_mlflow_database_that_a_kill_left_half_made_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = LogNote(tmp_path / "loggers" / "mlflow.json")
    sweep = LoggedSweep(note.sweep_id, "watched", tmp_path)

    def killed(*files: Path) -> None:
        raise KeyboardInterrupt

    logger = importlib.import_module("orchestrator.loggers.mlflow").Logger
    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.loggers.mlflow.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            logger(sweep)
    (half_made,) = (path for path in tmp_path.iterdir() if path.is_file())
    with closing(sqlite3.connect(half_made)) as database:
        database.execute("DELETE FROM alembic_version")  # as between two of its migrations: its tables cannot be made
        database.commit()
    LoggedRuns(note, sweep, logger(sweep)).started("t0000", CONFIG)
    assert set(mlflow_runs(tmp_path / "mlflow.db", "watched")) == {"t0000"}
    assert not half_made.exists()


@pytest.mark.usefixtures("no_server")
def test_comet_offline(tmp_path: Path) -> None:
    sessions_with_a_kill_between("comet", tmp_path)
    runs = comet_sessions(tmp_path / "comet")
    assert set(runs) == {"t0000", "t0001", "sweep"}
    assert [len(sessions) for sessions in runs.values()] == [2, 2, 2]
    for name, status in (("t0000", "completed"), ("t0001", "failed")):
        last = runs[name][-1]
        assert [step for step, _ in last.metrics["val_accuracy"]] == [3, 4]
        assert last.metrics["final/latency_ms"] == [(5, 1.5)]
        assert ("final/test_accuracy" in last.metrics) == (status == "completed")
        assert (last.params["learning_rate"], last.params["status"]) == (0.5, status)
    assert [session.images for session in runs["sweep"]] == [["front"], ["front"]]


@pytest.mark.parametrize(
    ("of", "names"),
    [
        (TBXLoggerCallback.log_trial_start, ["self._summary_writer_cls(", "trial.local_path", "init_local_path()"]),
        (TBXLoggerCallback.log_trial_end, ["self._trial_writer[trial]"]),
        (SummaryWriter._get_file_writer, ["self.file_writer = FileWriter("]),
        (EventFileWriter, ["self._ev_writer = EventsWriter(", "def add_event("]),
        (MLflowLoggerCallback, ["self.mlflow_util", "self._trial_runs[trial]"]),
        (
            _MLflowLoggerUtil,
            ["self._get_client()", "self._run_exists(", "def _parse_dict(", "def setup_mlflow(", "def log_params("],
        ),
        (WandbLoggerCallback._start_logging_actor, ["self._remote_logger_class", "self._trial_logging_futures[trial]"]),
        (WandbLoggerCallback, ["_logger_actor_cls", "def _signal_logging_actor_stop", "def _cleanup_logging_actors"]),
        (CometLoggerCallback.log_trial_start, ["if trial not in self._trial_experiments"]),
        (CometLoggerCallback, ["self.experiment_kwargs"]),
    ],
    ids=lambda of: getattr(of, "__qualname__", ""),
)
def test_what_is_private_of_callbacks_is_where_we_use_it(of: Callable[..., Any], names: list[str]) -> None:
    source = inspect.getsource(of)
    moved = [name for name in names if name not in source]
    assert not moved, f"{of.__qualname__} has no {moved} any more: see docs/tune.md, What is private"
