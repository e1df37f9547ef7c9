"""Whole sweeps of a few seconds through the command line, on real Ray."""

from __future__ import annotations

import json
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


def records(run: Path, kind: str) -> list[Path]:
    return sorted((run / "records" / kind).glob("*.json"))


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
def finished(alone: Cli, space_file: SpaceFile, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A tiny sweep on a cluster that it starts and stops itself: folder, outcome, processes left."""
    folder = tmp_path_factory.mktemp("sweep")
    mark = str(folder)
    result = alone("run", space_file(folder), "--out", folder / "run", "--address", "local", env={"SWEEP_MARK": mark})
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
    assert [path.stem for path in records(run, "trials")] == list(trials.index)

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
    assert summary["trials"] == {"completed": 4, "failed": 0}
    assert list(summary["front"]) == list(front["id"])
    assert (run / "front.png").read_bytes().startswith(b"\x89PNG")
    assert list((run / "checkpoints").glob("*")) == []


def test_latency_is_measured_before_training(finished: Finished) -> None:
    run, _, _ = finished
    measured = sorted(path.stat().st_mtime_ns for path in records(run, "latency"))
    trained = sorted(path.stat().st_mtime_ns for path in records(run, "trials"))
    assert len(measured) == len(trained) == 4
    assert all(before < after for before, after in zip(measured, trained, strict=True))


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


def test_two_workers_train_one_trial(cli: Cli, space_file: SpaceFile, tmp_path: Path) -> None:
    spec = space_file(
        tmp_path,
        space={"num_heads": [4]},
        resources={"workers_per_trial": 2, "cpus_per_trial": 2},
        finalists={"max_finalists": 0},
    )
    succeeded(cli("run", spec, "--out", tmp_path / "run"))
    (row,) = table(tmp_path / "run", "trials").to_dict("records")
    assert (row["status"], row["workers"], row["epochs"]) == ("completed", 2, 1)


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
    assert "2 at a time on 2 CPU(s)" in output
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
    output = succeeded(alone("latency", "cct_2_3x2_32", "--num-heads", "1,4", env={"COLUMNS": "160"}))
    assert "ms / image" in output
    assert len([line for line in output.splitlines() if line.startswith("│")]) == 2
