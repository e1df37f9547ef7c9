"""A run that version 0.1 left in the middle of its trials goes on from their checkpoints."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from measured_here import measured_here
from old_runs import old_run
from running_sweep import Session, records

from lsmha.training.checkpoints import load_state
from orchestrator.run_folder.ledger import Ledger


def test_trials_go_on_from_their_checkpoints(address: str, tmp_path: Path) -> None:
    run = measured_here(old_run("broken-off", tmp_path))
    half_done = {
        name: load_state(run / "checkpoints" / f"{name}.pt", map_location="cpu").state["history"]
        for name in ("t0000", "t0002")
    }
    session = Session("resume", run, log=tmp_path / "session", address=address)
    session.wait_until(lambda: half_done.keys() <= records(run, "trials").keys())
    assert session.process.pid is not None
    os.kill(session.process.pid, signal.SIGINT)  # the others take their time, and would show nothing more
    assert session.wait().code == 130
    ledger = Ledger.load(run)
    for name, history in half_done.items():
        record = ledger.tried(name)
        assert record is not None
        assert len(history) < len(record.curve) == 600
        assert record.curve[: len(history)] == history, "the epochs of before are those of the checkpoint, seconds too"
        assert not list((run / "checkpoints").glob(f"{name}*"))
