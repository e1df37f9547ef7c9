"""The quickstart as the README has it: a front, and finalists that read digits well."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
from background import PATIENCE_S
from repository import ROOT

QUICKSTART = ROOT / "search_spaces" / "quickstart.yaml"


def test_quickstart(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = [sys.executable, "-m", "orchestrator.cli", "run", str(QUICKSTART), "--out", str(run)]
    result = subprocess.run([*command, "--address", "local"], capture_output=True, text=True, timeout=2 * PATIENCE_S)
    assert result.returncode == 0, result.stdout + result.stderr
    assert len(pd.read_parquet(run / "front.parquet")) >= 3
    finalists = pd.read_parquet(run / "finalists.parquet")
    assert (finalists["status"] == "completed").all()
    assert finalists["test_accuracy"].min() >= 0.95
