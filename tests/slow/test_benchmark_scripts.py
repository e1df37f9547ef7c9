"""The scripts in benchmarks/, at toy size: they run, and say what they measured."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from background import PATIENCE_S, running
from PIL import Image
from repository import ROOT

BENCHMARKS = ROOT / "benchmarks"


def run(script: str, *arguments: str, out: Path, env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What the script wrote for programs; its file for readers has a table of the same. It gets `env`, too."""
    done = subprocess.run(
        [sys.executable, BENCHMARKS / f"{script}.py", *arguments, "--out", str(out)],
        env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    content = json.loads(out.with_suffix(".json").read_text())
    text = out.with_suffix(".md").read_text()
    assert text.startswith(f"# {content['title']}\n")
    assert content["command"] in text
    assert "| --- |" in text
    kinds = content["results"]
    if len(kinds) == 1:
        (content["results"],) = kinds.values()
    return content


def test_roofline(tmp_path: Path) -> None:
    content = run(
        "roofline", "--variants", "cct_2_3x2_32", "--num-heads", "4", "64", "--batch-size", "2", "--repeats", "1",
        out=tmp_path / "roofline",
    )  # fmt: skip
    few, many = content["results"]
    assert few["gigaoperations"] == many["gigaoperations"] > 0
    for content in (few, many):
        assert min(content["arithmetic_ms"], content["memory_ms"], content["saved_mib"]) > 0
        assert content["step_ms"]["median"] > max(content["arithmetic_ms"], content["memory_ms"])


def test_loader_share(tmp_path: Path) -> None:
    content = run(
        "loader_share", "--variants", "cct_2_3x2_32", "--steps", "1", "--repeats", "5", out=tmp_path / "loader"
    )
    plain, heavy = content["results"]
    assert 0 < plain["share"]["median"] < heavy["share"]["median"]


def test_trial_memory(tmp_path: Path) -> None:
    stranger = [sys.executable, "-c", "import time; time.sleep(300)", "ray::TrainingTrial: of another sweep"]
    with running(stranger, tmp_path / "stranger.log", env={}):
        content = run("trial_memory", "--images", "2000", "--workers", "2", out=tmp_path / "memory")
    first, second = content["results"]
    images_mib = 4000 * 3072 / 2**20
    for content in (first, second):
        assert content["resident"] > content["shared"] > images_mib


def test_latency_ranking(tmp_path: Path) -> None:
    few = ("--rounds", "2", "--architectures", "3", "--max-seconds", "0.01")
    first = run("latency_ranking", *few, out=tmp_path / "first")
    assert len(first["results"]) == 3
    assert all(result["processes"] >= 1 for result in first["results"])  # on a noisy machine not every round counts
    # At the other time each took its rank in seconds: nothing else lies between, and nothing ties.
    ranked = sorted(first["results"], key=lambda result: result["latency_ms"])
    latencies = [
        result | dict.fromkeys(("latency_ms", "latency_p25_ms", "latency_p75_ms"), 1000.0 * rank)
        for rank, result in enumerate(ranked, 1)
    ]
    other = tmp_path / "other.json"
    other.write_text(json.dumps({**first, "results": {"latencies": latencies}}))
    again = run("latency_ranking", *few, "--against", str(other), out=tmp_path / "second")["results"]
    (agreement,) = again["agreement"]
    now = {latency["architecture"]: latency["latency_ms"] for latency in again["latencies"]}
    in_order = sum(
        now[faster["architecture"]] < now[other["architecture"]] for faster, other in itertools.combinations(ranked, 2)
    )
    assert agreement["tau"] == pytest.approx((in_order - (3 - in_order)) / 3)
    assert agreement["pairs"] == 3
    assert agreement["discordant"] <= min(agreement["told_apart"], 3 - in_order)
    assert agreement["ratio_high"] < 1


def test_stacked_seeds(tmp_path: Path) -> None:
    content = run(
        "stacked_seeds", "--variants", "cct_2_3x2_32", "--batch-sizes", "2", "--seeds", "2", "--steps", "1",
        "--repeats", "1", out=tmp_path / "stacked",
    )  # fmt: skip
    (found,) = content["results"]
    assert found["ratio"]["median"] == pytest.approx(found["together"]["median"] / found["one_by_one"]["median"])


def test_training_modes(tmp_path: Path) -> None:
    content = run(
        "training_modes", "--variants", "cct_2_3x2_32", "--batch-size", "2", "--steps", "1", "--repeats", "1",
        out=tmp_path / "modes",
    )  # fmt: skip
    eager, compiled = content["results"]
    assert (eager["mode"], compiled["mode"]) == ("eager", "compiled")
    assert compiled["preparation_s"] > 0
    speeds = [mode["images_per_s"]["median"] for mode in (eager, compiled)]
    assert compiled["ratio"]["median"] == pytest.approx(speeds[1] / speeds[0])
    assert (compiled["pays_after_steps"] is None) == (compiled["ratio"]["low"] <= 1)


def test_scale(tmp_path: Path) -> None:
    content = run(
        "scale", "--at-a-time", "2", "4", "--hosts", "2", "--trials-per-actor", "3", "--epochs", "3",
        out=tmp_path / "scale",
    )  # fmt: skip
    assert [session["at_a_time"] for session in content["results"]["sessions"]] == [2, 4]
    for measured in content["results"]["measurements"]:
        at_a_time, is_long = measured["at_a_time"], measured["epochs"] > 1
        assert measured["trials"] == (2 if is_long else 3) * at_a_time
        assert measured["results"] == measured["trials"] * (measured["epochs"] + 1)
        assert sum(quarter["trials"] for quarter in measured["quarters"]) == measured["trials"]
        assert measured["trials_per_actor"]["n"] <= at_a_time
        if is_long:
            assert measured["most_at_a_time"] == measured["trials_per_actor"]["n"] == at_a_time


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for split, count in (("train", 160), ("test", 20)):
        images = []
        for _ in range(count):
            buffer = io.BytesIO()
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "png")
            images.append({"bytes": buffer.getvalue(), "path": None})
        table = pa.table({"img": images, "label": [number % 10 for number in range(count)]})
        pq.write_table(table, tmp_path / f"{split}.parquet")
    return tmp_path


def test_equal_accuracy(cifar: Path, tmp_path: Path) -> None:
    content = run("equal_accuracy", str(cifar), "--epochs", "1", "--seeds", "0", "1", out=tmp_path / "accuracy")
    found = [(result["candidate"], result["seed"]) for result in content["results"]]
    assert found == [("lsmha", 0), ("vit-pytorch", 0), ("lsmha", 1), ("vit-pytorch", 1)]
    assert all(0 <= result["test_accuracy"] <= 1 for result in content["results"])


def test_sweep_share(cifar: Path, tmp_path: Path, warm: dict[str, str]) -> None:
    content = run(
        "sweep_share", str(cifar), "--trials", "2", "--suggestion-batch", "2", "--images", "140", "--epochs", "1",
        out=tmp_path / "share", env=warm,
    )  # fmt: skip
    (found,) = content["results"]
    assert found["trials"] == 2
    assert found["steps"] + found["evaluation"] + found["rest"] == pytest.approx(1)
    assert 1 <= found["front"] <= 2
    assert 0 < found["steps_with_rounds"] < found["steps"] < 1
