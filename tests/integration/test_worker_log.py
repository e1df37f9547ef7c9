"""The log of the worker that does a job tells of it, from start to end."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from worker_logs import worker_logs

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def logged() -> Counter[str]:
    """What the workers of the session's cluster have logged of the job `train`: the first words after its name."""
    lines = "".join(worker_logs().values()).splitlines()
    return Counter(line.partition(" train: ")[2].split()[0] for line in lines if " train: " in line)


def test_a_job_is_in_its_workers_log(cli: Cli, tmp_path: Path) -> None:
    before = logged()
    small = ("--set", "model.embed_dim=32", "--set", "data.max_train_images=200", "--set", "train.batch_size=50")
    result = cli("train", "cct_2_3x2_32", "--data", "digits", "--epochs", 2, "--out", tmp_path / "one", *small)
    assert result.returncode == 0, result.stdout + result.stderr
    told = logged() - before
    del told["disturbed"]  # by other tests, as it may be
    assert told == Counter(["started", "epoch=1", "epoch=2", "completed"])
