"""A run that version 0.1 left in the middle of its trials goes on from their checkpoints."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

from measured_here import measured_here
from old_runs import old_run

from lsmha.training.checkpoints import load_state
from orchestrator.run_folder.ledger import Ledger

Cli = Callable[..., "subprocess.CompletedProcess[str]"]


def test_trials_go_on_from_their_checkpoints(cli: Cli, tmp_path: Path) -> None:
    run = measured_here(old_run("broken-off", tmp_path))
    half_done = {
        name: load_state(run / "checkpoints" / f"{name}.pt", map_location="cpu").state["history"]
        for name in ("t0000", "t0002")
    }
    result = cli("resume", run)
    assert result.returncode == 0, result.stdout + result.stderr
    ledger = Ledger.load(run)
    assert len(ledger.trials) == 7
    for name, history in half_done.items():
        record = ledger.tried(name)
        assert record is not None
        assert len(history) < len(record.curve) == 600
        assert record.curve[: len(history)] == history, "the epochs of before are those of the checkpoint, seconds too"
    assert list((run / "checkpoints").iterdir()) == []
