"""Whole sweeps of a few seconds through the command line, on real Ray."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
SpaceFile = Callable[..., Path]
Finished = tuple[Path, "subprocess.CompletedProcess[str]", list[str]]


def succeeded(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def table(run: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(run / f"{name}.parquet")


def records(run: Path, kind: str = "*") -> list[Path]:
    return sorted((run / "records").glob(f"{kind}/*.json"))


def written(files: list[Path]) -> dict[Path, tuple[bytes, int]]:
    """What files hold, and when that was written."""
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def processes_about(text: str) -> list[str]:
    """Command lines and environments of this machine's processes that mention `text`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            about = (process / "cmdline").read_bytes() + b"\0" + (process / "environ").read_bytes()
        except OSError:
            continue
        if text.encode() in about:
            found.append(process.name)
    return found


@pytest.fixture(scope="module")
def finished(
    alone: Cli, warm: dict[str, str], space_file: SpaceFile, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    """A tiny sweep on a cluster that it starts and stops itself: folder, outcome, processes left."""
    folder = tmp_path_factory.mktemp("sweep")
    mark = str(folder)
    environment = {**warm, "SWEEP_MARK": mark}
    result = alone("run", space_file(folder), "--out", folder / "run", "--address", "local", env=environment)
    return folder / "run", result, processes_about(f"SWEEP_MARK={mark}")


def test_a_sweep_writes_all_it_found_out(finished: Finished) -> None:
    run, result, left = finished
    succeeded(result)
    assert left == []

    trials = table(run, "trials").set_index("id").sort_index()
    assert list(trials.index) == ["t0000", "t0001", "t0002", "t0003"]
    assert set(zip(trials["num_heads"], trials["depth"], strict=True)) == {(1, 1), (1, 2), (4, 1), (4, 2)}
    assert (trials["status"] == "completed").all()
    assert (trials["epochs"] == 1).all()
    assert (trials["latency_ms"] > 0).all()
    assert trials["test_accuracy"].isna().all()
    assert [path.stem.rpartition("-")[0] for path in records(run, "trials")] == list(trials.index)

    front = table(run, "front")
    assert set(front["id"]) <= set(trials.index)
    finalists = table(run, "finalists")
    assert len(finalists) == min(2, len(front))
    assert finalists["test_accuracy"].between(0, 1).all()
    for run_id in finalists["id"]:
        files = {path.name for path in (run / "finalists" / run_id).iterdir()}
        assert {"model.safetensors", "config.json", "test_logits.safetensors"} <= files

    analysis = table(run, "analysis")
    assert sorted(analysis["id"].unique()) == sorted(finalists["id"])
    assert set(analysis["unit"]) == {"head", "node"}
    assert (run / "committees.parquet").exists() == (len(finalists) > 1)

    curves = table(run, "curves")
    assert sorted(curves["id"]) == sorted([*trials.index, *finalists["id"]])
    assert (curves["epoch"] == 1).all()
    assert len(table(run, "latency")) == 4
    summary = json.loads((run / "summary.json").read_text())
    assert summary["complete"]
    assert summary["trials"] == {"completed": 4, "stopped": 0, "paused": 0, "failed": 0}
    assert list(summary["front"]) == list(front["id"])
    assert (run / "front.png").read_bytes().startswith(b"\x89PNG")
    assert list((run / "checkpoints").glob("*")) == []


def test_latency_is_measured_before_training(finished: Finished) -> None:
    run, _, _ = finished
    measured = sorted(path.stat().st_mtime_ns for path in records(run, "latency"))
    trained = sorted(path.stat().st_mtime_ns for path in records(run, "trials"))
    assert len(measured) == len(trained) == 4
    assert measured[-1] < trained[0]


def test_away_from_a_terminal_each_ended_run_has_a_line(finished: Finished) -> None:
    _, result, _ = finished
    lines = result.stdout.splitlines()
    for run_id in ("t0000", "t0001", "t0002", "t0003"):
        assert sum(f"] {run_id} " in line and "val_accuracy=" in line for line in lines) == 1
    assert "\x1b" not in result.stdout
    assert result.stderr == ""


def test_status_and_front_of_a_finished_run(finished: Finished, alone: Cli) -> None:
    run, _, _ = finished
    status = succeeded(alone("status", run))
    assert "tiny: complete" in status
    assert "trials: 4 completed, 0 failed" in status
    front = succeeded(alone("front", run))
    assert all(run_id in front for run_id in table(run, "front")["id"])
    assert "Finalists" in front


@pytest.fixture
def copy(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished run, to go on with."""
    run, _, _ = finished
    return shutil.copytree(run, tmp_path / "run")


def test_a_finished_run_has_nothing_left_to_do(copy: Path, cli: Cli, space_file: SpaceFile, tmp_path: Path) -> None:
    def results() -> list[Path]:
        return [*records(copy), *(copy / "finalists").rglob("*.*"), *(copy / "analysis").rglob("*.*")]

    before = written(results())
    tables = {name: table(copy, name) for name in ("trials", "front", "finalists", "latency", "curves", "analysis")}
    output = succeeded(cli("run", space_file(tmp_path), "--out", copy))
    assert "] t0" not in output  # no line of a training run that ended
    assert written(results()) == before
    for name, rows in tables.items():
        pd.testing.assert_frame_equal(table(copy, name), rows)
    assert json.loads((copy / "summary.json").read_text())["complete"]


def test_a_run_grows(cli: Cli, space_file: SpaceFile, tmp_path: Path) -> None:
    run = tmp_path / "run"
    spec = space_file(
        tmp_path,
        search={"num_trials": 2, "suggestion_batch": 2},
        finalists={"max_finalists": 1, "seeds": [0]},
        analysis={"enabled": False},
    )
    succeeded(cli("run", spec, "--out", run))
    assert table(run, "trials")["id"].to_list() == ["t0000", "t0001"]
    before = written([*records(run), *(run / "finalists").rglob("*.*")])
    more = ("search.num_trials=4", "finalists.seeds=[0, 1]", "finalists.max_finalists=4", "analysis.enabled=true")
    succeeded(cli("resume", run, *(argument for setting in more for argument in ("--set", setting))))
    assert written(list(before)) == before
    trials = table(run, "trials")
    assert trials["id"].to_list() == ["t0000", "t0001", "t0002", "t0003"]
    assert set(zip(trials["num_heads"], trials["depth"], strict=True)) == {(1, 1), (1, 2), (4, 1), (4, 2)}
    front, finalists = set(table(run, "front")["id"]), table(run, "finalists")
    assert {f"{name}-s{seed}" for name in front for seed in (0, 1)} <= set(finalists["id"])
    assert sorted(table(run, "analysis")["id"].unique()) == finalists["id"].to_list()
    assert len(table(run, "committees")) > 0
    assert len(table(run, "latency")) == 4


def test_another_sweep_in_the_folder_of_a_run_is_refused(
    copy: Path, cli: Cli, space_file: SpaceFile, tmp_path: Path
) -> None:
    def files() -> list[Path]:
        return sorted(path for path in copy.rglob("*") if path.is_file())

    before = written(files())
    spec = space_file(tmp_path, train={"epochs": 2, "batch_size": 50})
    result = cli("run", spec, "--out", copy)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "train.epochs: must be 1, as in the run, but got 2" in line
    assert "--out" in line
    assert written(files()) == before


def test_two_workers_train_one_trial_after_the_other(cli: Cli, space_file: SpaceFile, tmp_path: Path) -> None:
    spec = space_file(
        tmp_path,
        search={"num_trials": 3, "suggestion_batch": 3},
        resources={"workers_per_trial": 2, "cpus_per_trial": 2},
        finalists={"max_finalists": 0},
    )
    run = tmp_path / "run"
    succeeded(cli("run", spec, "--out", run))
    rows = table(run, "trials")[["id", "status", "workers", "epochs"]].to_dict("records")
    assert rows == [{"id": f"t000{number}", "status": "completed", "workers": 2, "epochs": 1} for number in range(3)]
    assert len(list((run / "ray").glob("ranks-*"))) == 1  # the ranks stayed for all three


def test_a_configuration_that_diverges_fails_alone(cli: Cli, space_file: SpaceFile, tmp_path: Path) -> None:
    spec = space_file(
        tmp_path,
        train={"epochs": 1, "batch_size": 50, "optimizer": "sgd", "warmup_epochs": 0.0},
        space={"learning_rate": [1e-3, 1e20]},
        finalists={"max_finalists": 0},
    )
    succeeded(cli("run", spec, "--out", tmp_path / "run"))
    trials = table(tmp_path / "run", "trials").set_index("learning_rate")
    assert trials["status"].to_dict() == {1e-3: "completed", 1e20: "failed"}
    assert "DivergenceError" in trials.loc[1e20, "error"]
    assert table(tmp_path / "run", "front")["learning_rate"].to_list() == [1e-3]


@pytest.mark.parametrize("setting", ["resources.gpus_per_trial=1", "resources.cpus_per_trial=9999"])
def test_more_than_the_cluster_has_is_refused(cli: Cli, space_file: SpaceFile, tmp_path: Path, setting: str) -> None:
    result = cli("run", space_file(tmp_path), "--out", tmp_path / "run", "--set", setting)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert setting.split("=")[0] in line
    assert setting.split("=")[1] in line
    assert not (tmp_path / "run").exists()


def test_dry_run_plans_and_writes_nothing(cli: Cli, space_file: SpaceFile, tmp_path: Path) -> None:
    spec = space_file(tmp_path)
    output = succeeded(cli("run", spec, "--dry-run", "--out", tmp_path / "run"))
    assert "4 configurations" in output
    assert "1 CPU(s)" in output
    assert "2 at a time, up to 2 per node" in output
    assert "latency: of all 4 architectures first" in output
    assert sum("num_heads=" in line and "depth=" in line for line in output.splitlines()) == 4
    assert list(tmp_path.iterdir()) == [spec]


def test_train_one_network(cli: Cli, tmp_path: Path) -> None:
    small = ("--set", "model.embed_dim=32", "--set", "data.max_train_images=200", "--set", "train.batch_size=50")
    output = succeeded(
        cli("train", "cct_2_3x2_32", "--data", "digits", "--epochs", 1, "--out", tmp_path / "one", *small)
    )
    assert "epoch 1/1" in output
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert {"model.safetensors", "config.json", "test_logits.safetensors", "curve.parquet", "result.json"} <= files
    result = json.loads((tmp_path / "one" / "result.json").read_text())
    assert result["epoch"] == 1
    assert 0 <= result["test_accuracy"] <= 1


def test_a_network_that_cannot_be_trained(cli: Cli, tmp_path: Path) -> None:
    wild = ("--set", "train.learning_rate=1e20", "--set", "train.optimizer=sgd", "--set", "train.warmup_epochs=0")
    result = cli("train", "cct_2_3x2_32", "--epochs", 1, "--out", tmp_path / "one", *wild)
    assert result.returncode == 1
    assert "DivergenceError" in result.stdout


def test_latency_table(alone: Cli) -> None:
    output = succeeded(alone("latency", "cct_2_3x2_32", "--num-heads", "1,4", "--rounds", "1", env={"COLUMNS": "160"}))
    assert "ms / image" in output
    assert len([line for line in output.splitlines() if line.startswith("│")]) == 2
