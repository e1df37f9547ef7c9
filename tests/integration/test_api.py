"""The Python interface: sweeps without a console, run folders as data frames, and the example that shows both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd
import pytest
import torch
from background import PATIENCE_S, wait_for
from pandas.testing import assert_frame_equal
from repository import ROOT

import lsmha
from orchestrator import Run, UserError, load_run

SpaceFile = Callable[..., Path]

IN_A_THREAD = """
import sys
from concurrent.futures import ThreadPoolExecutor
from orchestrator import run_sweep
with ThreadPoolExecutor(1) as threads:
    print(threads.submit(run_sweep, sys.argv[1], out=sys.argv[2]).result())
"""
INTERRUPTED = """
import sys
from orchestrator import load_run, run_sweep
try:
    run_sweep(sys.argv[1], out=sys.argv[2])
except KeyboardInterrupt:
    print("interrupted")
print(load_run(sys.argv[2]))
"""


def script(code: str, *arguments: object, cwd: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {**env}
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def outcome(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, output + errors
    assert errors == ""
    return output


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory, warm: dict[str, str]) -> tuple[Path, str]:
    """The folder where the example ran, and what it printed."""
    folder = tmp_path_factory.mktemp("example")
    code = (ROOT / "examples" / "sweep_from_a_notebook.py").read_text(encoding="utf-8")
    return folder / "runs" / "notebook", outcome(script(code, cwd=folder, env=warm))


@pytest.fixture
def run(example: tuple[Path, str]) -> Run:
    return load_run(example[0])


def test_the_example_shows_a_sweep(example: tuple[Path, str], run: Run) -> None:
    _, output = example
    assert run.stage == "complete"
    assert len(run.trials) == 6
    for words in ("val_accuracy", *run.front["id"], "test accuracy 0.", "over the best alone", "labels_per_head"):
        assert words in output


def test_frames_are_those_of_the_files(run: Run) -> None:
    frames = {"analysis": run.analyses, "committees": run.committees}
    frames |= {name: getattr(run, name) for name in ("trials", "curves", "front", "latency", "finalists")}
    for name, frame in frames.items():
        assert_frame_equal(frame, pd.read_parquet(Path(run.folder) / f"{name}.parquet"))
    assert run.prunings.empty


def test_networks_are_ready_to_use(run: Run) -> None:
    dataset = lsmha.load_dataset(run.config.data)
    for finalist in run.finalists.itertuples():
        network, stored = run.network(finalist.id), run.logits(finalist.id)
        assert not network.training
        tested = lsmha.evaluate(network, dataset.test, dataset, device=torch.device("cpu"))
        assert tested.accuracy == pytest.approx(finalist.test_accuracy)
        assert (stored.logits.argmax(1) == stored.labels).double().mean() == pytest.approx(finalist.test_accuracy)
        assert run.logits(finalist.id, "val").labels.shape == (len(dataset.val),)
    with pytest.raises(UserError, match=r"finalist: must be one of t\d+-s0, .*, but got 't0099-s0'"):
        run.network("t0099-s0")


def test_a_sweep_in_a_thread_without_a_console(space_file: SpaceFile, tmp_path: Path, warm: dict[str, str]) -> None:
    few = space_file(tmp_path, space={"num_heads": [1, 4]}, search={"num_trials": 2}, finalists={"max_finalists": 0})
    output = outcome(script(IN_A_THREAD, few, tmp_path / "run", cwd=tmp_path, env=warm))
    assert output.startswith(f"Run('{tmp_path}/run': complete; 2 trials, ")
    assert len(output.splitlines()) == 1


def test_ctrl_c_loses_nothing(space_file: SpaceFile, tmp_path: Path, warm: dict[str, str]) -> None:
    spec = space_file(tmp_path, train={"epochs": 40, "batch_size": 20}, finalists={"max_finalists": 0})
    first = script(INTERRUPTED, spec, tmp_path / "run", cwd=tmp_path, env=warm)
    wait_for(lambda: list((tmp_path / "run" / "records" / "trials").glob("*.json")), "a trial to end")
    first.send_signal(signal.SIGINT)
    output = outcome(first)
    assert output.startswith("interrupted\n")
    kept = len(load_run(tmp_path / "run").trials)
    assert 1 <= kept < 4
    assert f"interrupted; {kept} trials" in output
    again = outcome(script(INTERRUPTED, spec, tmp_path / "run", cwd=tmp_path, env=warm))
    assert again.startswith(f"Run('{tmp_path}/run': complete; 4 trials, ")
