"""The job script for SLURM, with stand-ins for its commands that start everything on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from background import PATIENCE_S, wait_for
from repository import ROOT
from running_sweep import SWEEP, records, write_spec

from orchestrator.cluster.ports import ports_to_listen_on

STAND_INS = {
    # What it is asked to run, here; options come before that.
    "srun": 'while [ "${1#-}" != "$1" ]; do shift; done; exec "$@"',
    "scontrol": 'echo "$*" >> "$STOOD_IN/scontrol.log"',
    "hostname": "echo 127.0.0.1",
}


def job(folder: Path, nodes: int, spec: Path) -> subprocess.Popen[bytes]:
    """The script as SLURM would start it on the first of its nodes."""
    commands = folder / "bin"
    commands.mkdir(exist_ok=True)
    for name, does in STAND_INS.items():
        (commands / name).write_text(f"#!/usr/bin/env bash\n{does}\n")
        (commands / name).chmod(0o755)
    # Its port follows from its number.
    number = ports_to_listen_on(1)[0] if nodes > 1 else 7
    environment = {
        "PATH": f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "STOOD_IN": str(folder),
        "SLURM_JOB_ID": str(number),
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURMD_NODENAME": "here",
    }
    with (folder / "slurm.out").open("ab") as output:
        return subprocess.Popen(
            ["bash", str(ROOT / "examples" / "sweep.slurm"), str(spec), str(folder / "run")],
            env={**os.environ, **environment},
            stdout=output,
            stderr=output,
        )


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_job_that_is_out_of_time_goes_on_in_the_next(nodes: int, tmp_path: Path) -> None:
    train = {**SWEEP["train"], "epochs": 16}
    spec = write_spec(tmp_path / "space.yaml", train=train, resources={"max_concurrent_trials": 2})

    def said() -> str:
        return (tmp_path / "slurm.out").read_text()

    first = job(tmp_path, nodes, spec)
    try:
        wait_for(lambda: first.poll() is not None or records(tmp_path / "run", "trials"), "a trial", said=said)
        first.send_signal(signal.SIGTERM)
        assert first.wait(PATIENCE_S) == 143, said()
        before = records(tmp_path / "run", "trials")
        assert 0 < len(before) < 8
        assert (tmp_path / "scontrol.log").read_text().startswith("requeue ")
        second = job(tmp_path, nodes, spec)
        assert second.wait(PATIENCE_S) == 0, said()
    finally:
        first.kill()
    assert {name: record for name, record in records(tmp_path / "run", "trials").items() if name in before} == before
    assert len(pd.read_parquet(tmp_path / "run" / "trials.parquet")) == 8
    if nodes > 1:
        assert "error" not in said()
