"""What `run` leaves behind when the sweep itself breaks."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
from rich.console import Console

from orchestrator import run
from orchestrator.cluster import Capacity
from orchestrator.ledger import Ledger
from orchestrator.status import describe_stage
from orchestrator.sweep_yaml import load_sweep_config

QUICKSTART = Path(__file__).parents[2] / "search_spaces" / "quickstart.yaml"


def test_a_crash_leaves_a_readable_folder_that_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_sweep(*_: object) -> None:
        raise RuntimeError("the cluster went away")

    monkeypatch.setattr(run, "connect", lambda *_, **__: nullcontext(Capacity(((2, 0.0),))))
    monkeypatch.setattr(run, "Sweep", broken_sweep)
    folder = tmp_path / "run"
    with pytest.raises(RuntimeError, match="the cluster went away"):
        run.run_sweep(
            load_sweep_config(QUICKSTART), folder, Console(quiet=True), address=None, dashboard=False, quiet=True
        )
    assert describe_stage(folder) == "crashed"
    assert Ledger.load(folder).trials == []
    assert (folder / "trials.parquet").is_file()
