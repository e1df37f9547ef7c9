"""Runs of version 0.1 go on under this one: nothing is done again, and what is new lies beside what was there."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from measured_here import measured_here
from old_runs import old_run

from orchestrator.run_folder.ledger import Ledger

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def records(run: Path) -> dict[Path, tuple[bytes, int]]:
    """What record files hold, and when that was written."""
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in (run / "records").rglob("*.json")}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return measured_here(old_run("complete", tmp_path))


def test_a_complete_run_is_complete(cli: Cli, run: Path) -> None:
    before = records(run)
    result = cli("resume", run)
    assert result.returncode == 0, result.stdout + result.stderr
    assert records(run) == before


def test_it_grows(cli: Cli, run: Path) -> None:
    before = records(run)
    result = cli("resume", run, "--set", "search.num_trials=9")
    assert result.returncode == 0, result.stdout + result.stderr
    after = records(run)
    assert {path: after[path] for path in before} == before
    assert {path.parent.name for path in after.keys() - before.keys()} >= {"batches", "settings", "trials"}
    ledger = Ledger.load(run)
    assert [batch.first for batch in ledger.batches] == [0, 4, 7]
    assert len(ledger.trials) == 9
    assert len(pd.read_parquet(run / "trials.parquet")) == 9
