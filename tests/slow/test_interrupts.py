"""Signals and crashes in the middle of a sweep: what was done stays, what was not ends or goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML

SWEEP = {
    "name": "long",
    "data": {"name": "digits"},
    "model": {"embed_dim": 32, "mlp_ratio": 1.0},
    "train": {"epochs": 40, "batch_size": 64},
    "space": {"num_heads": [1, 2, 4, 8, 16, 32], "depth": [2, 3, 4]},
    "search": {"num_trials": 18, "wave_size": 2},
    "latency": {"min_iterations": 3, "max_seconds": 0.05, "warmup_s": 0.0},
    "finalists": {"max_finalists": 0},
}
"""Eighteen trials of some seconds each."""


class RunningSweep:
    """A sweep in a process of its own, on a cluster of its own."""

    def __init__(self, folder: Path, **sections: Any) -> None:
        spec = folder / "space.yaml"
        with spec.open("w") as file:
            YAML(typ="safe", pure=True).dump({**SWEEP, **sections}, file)
        self.folder = folder / "run"
        self._mark = f"SWEEP_MARK={folder}"
        self._output = (folder / "output").open("w+")
        command = [sys.executable, "-m", "orchestrator.cli", "run", str(spec), "--out", str(self.folder)]
        self.process = subprocess.Popen(
            [*command, "--address", "local"],
            env={**os.environ, "SWEEP_MARK": str(folder)},
            stdout=self._output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def output(self) -> str:
        self._output.seek(0)
        return self._output.read()

    def records(self) -> list[dict[str, Any]]:
        return [
            json.loads(path.read_text()) for path in sorted((self.folder / "records" / "trials").glob("[!.]*.json"))
        ]

    def wait_until(self, condition: Callable[[], Any], seconds: float = 120) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < deadline, self.output()
            time.sleep(0.2)
        return found

    def processes(self, title: str = "") -> list[int]:
        """Ids of the live processes of this sweep, its Ray cluster included, with `title` in their command line."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                environment, command = (process / "environ").read_bytes(), (process / "cmdline").read_bytes()
            except OSError:
                continue
            if self._mark.encode() in environment.split(b"\0") and title.encode() in command:
                found.append(int(process.name))
        return found


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., RunningSweep]]:
    """Starts a sweep; whatever is left of it is killed in the end."""
    started: list[RunningSweep] = []

    def start_sweep(**sections: Any) -> RunningSweep:
        started.append(RunningSweep(tmp_path, **sections))
        return started[-1]

    yield start_sweep
    for sweep in started:
        for process in sweep.processes():
            os.kill(process, signal.SIGKILL)
        sweep.process.wait(10)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("whom", ["process", "group"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_sweep_keeps_what_it_has(
    start: Callable[..., RunningSweep], number: signal.Signals, code: int, whom: str
) -> None:
    sweep = start()
    sweep.wait_until(lambda: len(sweep.records()) >= 2)
    # A terminal and many a job scheduler signal the whole process group, the Ray cluster included.
    {"process": os.kill, "group": os.killpg}[whom](sweep.process.pid, number)
    assert sweep.process.wait(60) == code, sweep.output()
    assert "interrupted" in sweep.output()
    assert "Traceback" not in sweep.output()
    completed = [record["id"] for record in sweep.records() if record["status"] == "completed"]
    trials = pd.read_parquet(sweep.folder / "trials.parquet")
    assert 2 <= len(completed) < 18
    assert sorted(trials.loc[trials["status"] == "completed", "id"]) == completed
    assert json.loads((sweep.folder / "summary.json").read_text())["complete"] is False
    sweep.wait_until(lambda: not sweep.processes(), seconds=20)


@pytest.mark.timeout(400)
def test_a_killed_trial_goes_on_from_its_last_epoch(start: Callable[..., RunningSweep]) -> None:
    epochs = 60
    sweep = start(space={"num_heads": [4]}, train={"epochs": epochs, "batch_size": 64})
    checkpoint = sweep.folder / "checkpoints" / "t0000.pt"
    sweep.wait_until(checkpoint.exists)
    (actor,) = sweep.wait_until(lambda: sweep.processes("ray::ImplicitFunc"))
    os.kill(actor, signal.SIGSTOP)  # so that the checkpoint stays as it is read here
    history = torch.load(checkpoint, weights_only=True)["history"]
    assert 1 <= len(history) < epochs
    os.kill(actor, signal.SIGKILL)
    assert sweep.process.wait(200) == 0, sweep.output()
    (record,) = sweep.records()
    assert (record["status"], record["epochs"]) == ("completed", epochs)
    # The wall times of the first epochs are those from before: they were not trained again.
    assert record["curve"][: len(history)] == history
    assert [epoch["epoch"] for epoch in record["curve"]] == list(range(1, epochs + 1))
