"""A sweep that is killed, interrupted and resumed, as TensorBoard, MLflow and W&B have it: each run and epoch once."""

from __future__ import annotations

import json
import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
from faults import Fault, Kill
from logged_runs import LoggedRun, mlflow_runs, tensorboard_runs, wandb_sessions
from running_sweep import Sweep

EPOCHS = 6
SECTIONS: dict[str, Any] = {
    "name": "logged",
    "train": {"epochs": EPOCHS, "batch_size": 20, "precision": "fp32"},
    "search": {"sampler": "random", "num_trials": 4, "suggestion_batch": 4},
    "finalists": {"max_finalists": 1, "seeds": [0], "epochs": EPOCHS + 1},
    "analysis": {"enabled": False},
    "loggers": ["tensorboard", "mlflow", "wandb"],
}
CURVE = ("train_loss", "val_loss", "val_accuracy", "learning_rate", "seconds", "images_per_s")
FINAL = ("val_accuracy", "val_loss", "test_accuracy", "test_loss", "latency_ms", "params", "macs", "seconds")


class Logged(NamedTuple):
    """A finished sweep."""

    run: Path
    curves: pd.DataFrame
    """A row per training run and epoch."""
    results: pd.DataFrame
    """Trials and finalists by id."""

    def curve(self, name: str) -> pd.DataFrame:
        """The epochs of a training run; none of one that failed in its first."""
        return self.curves[self.curves["id"] == name].set_index("epoch")

    def assert_same(self, name: str, run: LoggedRun, *, rel: float = 1e-12) -> None:
        """The logger has each epoch once, with the values of the run's table, and the result as a step of its own."""
        curve, result = self.curve(name), self.results.loc[name]
        for metric in CURVE:
            expected = [(epoch, pytest.approx(value, rel=rel)) for epoch, value in curve[metric].items()]
            assert run.metrics.get(metric, []) == expected, (name, metric)
        final = {key: values for key, values in run.metrics.items() if key.startswith("final/")}
        assert final == {
            f"final/{metric}": [(len(curve) + 1, pytest.approx(result[metric], rel=rel))]
            for metric in FINAL
            if pd.notna(result[metric])
        }


@pytest.fixture(scope="module")
def logged(address: str, tmp_path_factory: pytest.TempPathFactory) -> Logged:
    """One trial fails; the first session is killed, the second one interrupted, the third one gets to the end."""
    folder = tmp_path_factory.mktemp("logged")
    sweep = Sweep(folder, address, environment={"WANDB_MODE": "offline"}, **SECTIONS)
    spoilt = Fault(spoilt={"t0001": "nan"})
    # When six things were noted of runs that have at least eight each, but for t0001.
    killed = replace(spoilt, kill=Kill(r"/loggers/tensorboard\.json$", "after the rename", count=6))
    assert sweep.do(fault=killed).code == -signal.SIGKILL
    assert _is_half_logged(sweep.run)
    session = sweep.start(*sweep.again("resume"), fault=spoilt)
    # A logger may have been behind what was trained.
    session.wait_until(lambda: re.search("^(search|finalists): ", session.output(), re.MULTILINE))
    assert session.process.pid is not None
    os.kill(session.process.pid, signal.SIGINT)
    assert session.wait().code == 130
    # On a slow machine one session may leave something to the next, as it says.
    ends = (sweep.do(*sweep.again("resume"), fault=spoilt) for _ in range(3))
    assert any(end.code == 0 and "next session makes up for it" not in end.output for end in ends)
    curves = pd.read_parquet(sweep.run / "curves.parquet")
    results = pd.concat(pd.read_parquet(sweep.run / f"{kind}.parquet") for kind in ("trials", "finalists"))
    return Logged(sweep.run, curves, results.set_index("id"))


def _is_half_logged(run: Path) -> bool:
    """Whether some run that has not ended has epochs in TensorBoard."""
    noted = json.loads((run / "loggers" / "tensorboard.json").read_text())
    return bool(noted["steps"].keys() - noted["ended"])


def test_all_is_there_to_be_logged(logged: Logged) -> None:
    assert len(logged.results) == 5
    assert (logged.results["status"] == "failed").sum() == 1
    assert logged.results["test_accuracy"].notna().sum() == 1


def test_tensorboard_has_each_epoch_once(logged: Logged) -> None:
    runs = tensorboard_runs(logged.run / "tensorboard")
    assert set(runs) == {*logged.results.index, "sweep"}
    for name, result in logged.results.iterrows():
        logged.assert_same(str(name), runs[str(name)], rel=1e-6)  # event files hold single precision
        assert runs[str(name)].params["num_heads"] == result["num_heads"]
        assert runs[str(name)].params["seed"] == result["seed"]
    assert runs["sweep"].images == ["ray/tune/front"]


def test_mlflow_has_each_run_once(logged: Logged) -> None:
    runs = mlflow_runs(logged.run / "mlflow.db", "logged")
    assert set(runs) == {*logged.results.index, "sweep"}
    for name, result in logged.results.iterrows():
        run = runs[str(name)]
        logged.assert_same(str(name), run)
        assert run.params["learning_rate"] == str(result["learning_rate"])
        assert run.params["trial"] == result["trial"]
        expected = ("FAILED", result["error"]) if result["status"] == "failed" else ("FINISHED", "")
        assert (run.status, run.error) == expected
    assert runs["sweep"].images == ["front.png"]
    assert runs["sweep"].status == "FINISHED"


def test_wandb_has_each_run_by_one_id(logged: Logged) -> None:
    sessions = wandb_sessions(logged.run / "wandb")
    names = {run_id.partition("-")[2] for run_id in sessions}
    assert names == {*logged.results.index, "sweep"}
    assert len(sessions) == len(names), "a run has one id in all sessions"
    for run_id, parts in sessions.items():
        name = run_id.partition("-")[2]
        metrics: dict[str, list[tuple[int, float]]] = {}
        for part in parts:
            for metric, values in part.metrics.items():
                metrics.setdefault(metric, []).extend(values)
        if name == "sweep":
            assert parts[-1].images == ["front"]
            continue
        # What a killed session had not written yet is all that may lack: W&B writes in processes of its own.
        steps = [step for step, _ in metrics.get("val_loss", [])]
        assert sorted(set(steps)) == steps, f"{name}: {steps}"
        # A session that was broken off while W&B ended a run leaves it to the next one to make sure: in the same step.
        assert {step for step, _ in metrics["final/seconds"]} == {len(logged.curve(name)) + 1}
        assert parts[-1].params["num_heads"] == logged.results.loc[name, "num_heads"]
        assert parts[-1].params["status"] == logged.results.loc[name, "status"]


def test_nothing_is_logged_elsewhere(logged: Logged) -> None:
    assert sorted(path.name for path in logged.run.parent.iterdir() if path.is_dir()) == ["run"]
    for name in ("tensorboard", "mlflow", "wandb"):
        assert (logged.run / "loggers" / f"{name}.json").is_file()
