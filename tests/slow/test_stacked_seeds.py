"""A finalist's seeds that are trained together: the results of runs of their own, told and recorded one by one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import load_file
from torch.testing import assert_close
from worker_logs import worker_logs

Cli = Callable[..., "subprocess.CompletedProcess[str]"]
SEEDS = (0, 1, 2)


def time_of(line: str) -> list[str]:
    return line.split()[:2]


def started(before: dict[str, str]) -> list[str]:
    """What the workers have begun since, in order."""
    new = "".join(text.removeprefix(before.get(name, "")) for name, text in worker_logs().items()).splitlines()
    return [line.split()[2].rstrip(":") for line in sorted(new, key=time_of) if line.endswith(": started")]


def sweep(cli: Cli, space: Path, out: Path, together: int) -> tuple[pd.DataFrame, list[str]]:
    before = worker_logs()
    result = cli("run", space, "--out", out, "--set", f"finalists.resources.max_stacked_seeds={together}")
    assert result.returncode == 0, result.stdout + result.stderr
    return pd.read_parquet(out / "finalists.parquet").set_index("id").sort_index(), started(before)


def test_seeds_trained_together_are_as_if_trained_apart(cli: Cli, space_file: Any, tmp_path: Path) -> None:
    space = space_file(
        tmp_path,
        model={"embed_dim": 16, "mlp_ratio": 1.0, "attention": "materialized", "attn_drop": 0.0, "drop_path": 0.0},
        train={"epochs": 2, "batch_size": 50, "precision": "fp32"},
        space={"num_heads": [4], "depth": [2]},
        search={"num_trials": 1, "suggestion_batch": 1},
        finalists={"max_finalists": 1, "seeds": list(SEEDS), "resources": {"max_concurrent_trials": 1}},
    )
    together, begun = sweep(cli, space, tmp_path / "together", 3)
    apart, begun_apart = sweep(cli, space, tmp_path / "apart", 1)
    ids = [f"t0000-s{seed}" for seed in SEEDS]
    assert begun == ["t0000", "+".join(ids)]
    assert begun_apart == ["t0000", *ids]
    assert list(together.index) == list(apart.index) == ids
    for name in ("val_loss", "test_loss", "val_accuracy", "test_accuracy"):
        assert together[name].tolist() == pytest.approx(apart[name].tolist(), abs=1e-5)
    assert together["test_loss"].nunique() == len(SEEDS)
    for run_id in ids:
        files = [tmp_path / run / "finalists" / run_id / "model.safetensors" for run in ("together", "apart")]
        assert_close(*map(load_file, files), atol=1e-5, rtol=1e-4)
    assert list((tmp_path / "together" / "checkpoints").glob("*.pt")) == []
