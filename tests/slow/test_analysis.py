"""From a sweep to its analyses, committees and pruned networks, through the command line, on real Ray."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from published_names import to_published_key

from lsmha.analysis.saved import load_fields
from lsmha.config import ModelConfig
from lsmha.models import CCT

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
SpaceFile = Callable[..., Path]

NETWORKS = [
    {"num_heads": 1, "num_conv_blocks": 0, "conv_kind": "conv3x3"},
    {"num_heads": 2, "num_conv_blocks": 0, "conv_kind": "conv3x3"},
    {"num_heads": 4, "num_conv_blocks": 1, "conv_kind": "conv3x3"},
    {"num_heads": 1, "num_conv_blocks": 2, "conv_kind": "conv3x3"},
    {"num_heads": 1, "num_conv_blocks": 2, "conv_kind": "depthwise"},
]
"""Three head counts, one of them in a hybrid, and two plain CNNs."""


def succeeded(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def run(address: str, alone: Cli, space_file: SpaceFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep whose finalists are NETWORKS, with two seeds each."""
    folder = tmp_path_factory.mktemp("analysis")
    spec = space_file(
        folder,
        model={"embed_dim": 16, "mlp_ratio": 1.0, "depth": 2},
        space={"num_heads": [1, 2, 4], "num_conv_blocks": [0, 1, 2], "conv_kind": ["conv3x3", "depthwise"]},
        search={"num_trials": 5, "suggestion_batch": 5},
        finalists={"max_finalists": 0, "seeds": [0, 1], "include": NETWORKS},
        analysis={"taps": ["attn", "block"], "permutations": 20},
        committees={"resamples": 200},
        pruning={"thresholds": [0.3, 0.6], "epochs": 1},
    )
    result = alone("run", spec, "--out", folder / "run", env={"RAY_ADDRESS": address})
    output = succeeded(result)
    assert result.stderr == ""
    assert "Committees by softmax" in output
    return folder / "run"


def finalists(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "finalists").iterdir())


def test_included_points_are_finalists(run: Path) -> None:
    table = pd.read_parquet(run / "finalists.parquet")
    assert sorted(table["trial"].unique()) == [f"t{number:04d}" for number in range(5)]
    assert finalists(run) == [f"t{number:04d}-s{seed}" for number in range(5) for seed in (0, 1)]


def test_every_finalist_is_analyzed(run: Path) -> None:
    rows = pd.read_parquet(run / "analysis.parquet")
    assert sorted(rows["id"].unique()) == finalists(run)
    for run_id in finalists(run):
        files = {path.name for path in (run / "analysis" / run_id).iterdir()}
        assert {"fields.safetensors", "blocks.parquet", "heads.parquet", "incidence.parquet", "blocks.png"} <= files
    hybrid = rows[rows["id"] == "t0002-s0"]
    assert list(zip(hybrid["block"], hybrid["tap"], hybrid["unit"], strict=True)) == [
        (0, "block", "filter"), (1, "attn", "head"), (1, "attn", "node"), (1, "block", "node"),
    ]  # fmt: skip
    assert load_fields(run / "analysis" / "t0002-s0")["block1.attn.head"].shape == (4, 10, 10)
    assert json.loads((run / "status.json").read_text())["stage"] == "complete"


def test_committees_are_stored(run: Path) -> None:
    rows = pd.read_parquet(run / "committees.parquet")
    softmax = rows[(rows["rule"] == "softmax") & (rows["kind"] == "committee")]
    assert set(softmax["group"]) == {"all", "mixed_heads", "same_architecture", "cnn", "cnn_same_architecture"}
    (three, *_) = softmax[(softmax["group"] == "mixed_heads") & (softmax["size"] == 3)].to_dict("records")
    assert sorted(three["num_heads"]) == [1, 2, 4]
    assert three["gain_over_best_low"] <= three["gain_over_best"] <= three["gain_over_best_high"]
    assert (run / "committees.png").is_file()


def test_committee_of_several_runs(run: Path, alone: Cli, tmp_path: Path) -> None:
    copy = tmp_path / "again"
    subprocess.run(["cp", "-r", run, copy], check=True)
    output = succeeded(alone("committee", run, copy, "--out", tmp_path / "both"))
    assert "mixed heads" in output
    rows = pd.read_parquet(tmp_path / "both" / "committees.parquet")
    everyone = rows[(rows["group"] == "all") & (rows["kind"] == "committee")].iloc[0]
    assert everyone["size"] == 12
    assert {name.split("/")[0] for name in everyone["members"]} == {"run", "again"}


def test_analyze_a_run_again(run: Path, alone: Cli, address: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", run, copy], check=True)
    settings = ("--set", "analysis.threshold=0.6", "--set", "analysis.readout.solver=sgd",
                "--set", "analysis.readout.pooling=sequence", "--set", "analysis.readout.epochs=1")  # fmt: skip
    output = succeeded(alone("analyze", copy, *settings, env={"RAY_ADDRESS": address}))
    rows = pd.read_parquet(copy / "analysis.parquet")
    assert set(rows["threshold"]) == {0.6}
    assert set(rows["solver"]) == {"sgd"}
    assert all(run_id in output for run_id in finalists(run))


def test_analyze_a_checkpoint(run: Path, alone: Cli, address: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    checkpoint = run / "finalists" / "t0002-s0"
    options = ("--out", out, "--set", "data.max_train_images=200", "--set", "analysis.permutations=20")
    output = succeeded(alone("analyze", checkpoint, *options, env={"RAY_ADDRESS": address}))
    assert "1.attn" in output
    again, before = (pd.read_parquet(folder / "heads.parquet") for folder in (out, run / "analysis" / "t0002-s0"))
    heads = before[before["unit"] == "head"].reset_index(drop=True)
    # The same network, images and seed: the same numbers as within the sweep.
    pd.testing.assert_frame_equal(again[again["unit"] == "head"].reset_index(drop=True), heads)


def test_analyze_published_weights(alone: Cli, address: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CCT(ModelConfig(img_size=8, in_channels=1, num_classes=10, embed_dim=16, depth=2, num_heads=4))
    weights = {to_published_key(name): value for name, value in model.state_dict().items()}
    torch.save(weights, tmp_path / "weights.pth")
    options = ("--num-heads", 4, "--data", "digits", "--set", "analysis.permutations=20")
    output = succeeded(alone("analyze", tmp_path / "weights.pth", *options, env={"RAY_ADDRESS": address}))
    assert "weights-analysis" in output
    blocks = pd.read_parquet(tmp_path / "weights-analysis" / "blocks.parquet")
    assert blocks.loc[blocks["unit"] == "head", "num_units"].tolist() == [4, 4]
    # An untrained network says enough of an image for its read-outs to learn from.
    assert blocks["readout_accuracy"].min() > 0.15  # chance is 0.1


def test_prune(run: Path, alone: Cli, address: str) -> None:
    names = ("t0000-s0", "t0002-s0", "t0003-s0")
    chosen = [argument for name in names for argument in ("--finalist", name)]
    output = succeeded(alone("prune", run, *chosen, env={"RAY_ADDRESS": address}))
    assert "random" in output
    rows = pd.read_parquet(run / "pruning.parquet")
    # The transformer and the hybrid have nodes to prune, the plain CNN filters; the hybrid has one conv block only.
    assert set(zip(rows["id"], rows["method"], strict=True)) == {
        ("t0000-s0", "andc"), ("t0002-s0", "andc"), ("t0003-s0", "afcc"),
    }  # fmt: skip
    for _, own in rows.groupby("id"):
        masked = own[own["mask"] != "none"].pivot(index="threshold", columns="mask", values="kept_of_connections")
        assert list(masked.index) == [0.3, 0.6]
        assert (masked["fields"] == masked["random"]).all()
        assert masked["fields"].is_monotonic_decreasing
        assert (own.loc[own["mask"] == "none", "kept_of_connections"] == 1).all()
    assert rows["test_accuracy"].between(0, 1).all()
    assert (run / "pruning.png").is_file()
