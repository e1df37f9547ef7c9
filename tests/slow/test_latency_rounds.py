"""Latency measured in rounds: in fresh processes, of the front of a sweep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from background import PATIENCE_S, wait_for

from lsmha.config import LatencyConfig, ModelConfig
from lsmha.latency import LatencyMeasurement, measure_round

TINY = ModelConfig(img_size=8, num_classes=3, embed_dim=8, depth=1, num_heads=2)
QUICK = LatencyConfig(batch_sizes=(1, 2), warmup_s=0, min_iterations=3, max_seconds=0.01)
CPU = torch.device("cpu")


def test_a_round_measures_each_network_or_says_why_not() -> None:
    heavy = TINY.model_copy(update={"img_size": 512, "num_heads": 8, "attention": "materialized"})  # 2^35 weights
    made = measure_round([TINY, heavy, TINY], QUICK, device=CPU)
    first, failed, last = made.measured
    assert made.reference_ms > 0
    for rows in (first, last):
        assert isinstance(rows, list)
        assert all(isinstance(row, LatencyMeasurement) and row.latency_ms > 0 for row in rows)
        assert [row.batch_size for row in rows] == [1, 2]
    assert isinstance(failed, str)
    assert "memory" in failed


def test_a_round_says_what_its_mode_needs() -> None:
    made = measure_round([TINY], QUICK.model_copy(update={"mode": "cuda-graph"}), device=CPU)
    reason = "latency.mode: must be eager or compiled without a GPU, but got 'cuda-graph'"
    assert made.measured == [f"ConfigurationError: {reason}"]


def test_a_round_ends_with_the_process_that_wants_it(tmp_path: Path) -> None:
    endless = QUICK.model_copy(update={"max_seconds": 300.0, "target_spread": 1e-9})
    mark = f"ROUND_MARK={tmp_path}"
    script = (
        "import sys, torch; from lsmha.config import *; from lsmha.latency import measure_round\n"
        "measure_round([], LatencyConfig.model_validate_json(sys.argv[1]), device=torch.device('cpu'))"
    )
    wants = subprocess.Popen(
        [sys.executable, "-c", script, endless.model_dump_json()], env={**os.environ, "ROUND_MARK": str(tmp_path)}
    )

    def alive() -> list[int]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if mark.encode() in (process / "environ").read_bytes().split(b"\0"):
                    found.append(int(process.name))
            except OSError:
                continue
        return found

    try:
        wait_for(lambda: len(alive()) == 3, "the process, its interpreter and the reference network's")
        wants.kill()
        wants.wait(PATIENCE_S)
        wait_for(lambda: not alive(), "the end of all of them")
    finally:
        for process in alive():
            os.kill(process, signal.SIGKILL)


def test_the_front_is_measured_in_rounds(
    cli: Callable[..., Any], space_file: Callable[..., Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    latency = {"min_iterations": 3, "max_seconds": 0.05, "warmup_s": 0.0, "rounds": 3}
    spec = space_file(tmp_path, latency=latency, finalists={"max_finalists": 0})
    done = cli("run", spec, "--out", run)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "measured the latency of the front in " in done.stdout
    front = pd.read_parquet(run / "front.parquet")
    assert (front["latency_p25_ms"] <= front["latency_ms"]).all()
    assert (front["latency_ms"] <= front["latency_p75_ms"]).all()
    latencies = pd.read_parquet(run / "latency.parquet")
    searched, measured = (latencies[latencies["reference_ms"].notna() == rounds] for rounds in (False, True))
    trials = pd.read_parquet(run / "trials.parquet").set_index("id")
    assert sorted(searched["architecture"]) == sorted(trials["architecture"])
    in_rounds = measured.set_index("architecture")["latency_ms"]
    for _, record in front.iterrows():
        assert record["latency_ms"] == in_rounds[record["architecture"]]
        assert trials.loc[record["id"], "latency_ms"] in searched["latency_ms"].tolist()
    again = cli("resume", run)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "measured the latency of the front" not in again.stdout
    pd.testing.assert_frame_equal(pd.read_parquet(run / "latency.parquet"), latencies)
