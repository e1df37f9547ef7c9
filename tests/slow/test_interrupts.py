"""Signals in the middle of a sweep: what was done stays, what was not goes on later, and no process is left."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from background import PATIENCE_S
from running_sweep import Reference, RunningSweep, Sweep, assert_nothing_lost, table


@pytest.fixture
def started(tmp_path: Path) -> Iterator[RunningSweep]:
    """A sweep on a cluster of its own that has trained something; whatever is left of it is killed in the end."""
    running = RunningSweep(tmp_path)
    try:
        running.wait_until(lambda: len(running.records()) >= 2)
        yield running
    finally:
        for process in running.processes():
            os.kill(process, signal.SIGKILL)
        running.process.wait(PATIENCE_S)


@pytest.mark.parametrize(
    ("number", "code", "whom"),
    [
        (signal.SIGINT, 130, "group"),
        (signal.SIGTERM, 143, "process"),
        (signal.SIGHUP, 129, "group"),
    ],
    ids=["Ctrl-C", "kill", "a terminal that is closed"],
)
def test_an_interrupted_sweep_says_how_it_goes_on(
    number: signal.Signals,
    code: int,
    whom: str,
    started: RunningSweep,
    sweep: Callable[..., Sweep],
    reference: Reference,
) -> None:
    # The process group is the Ray cluster, too.
    {"process": os.kill, "group": os.killpg}[whom](started.process.pid, number)
    assert started.process.wait(PATIENCE_S) == code, started.output()
    started.wait_until(lambda: not started.processes())
    recorded = started.records()
    assert 2 <= len(recorded) < 8
    *_, last = started.output().splitlines()
    assert last == (
        f"incomplete, {len(recorded)} of 8 trials and 0 finalist runs recorded at {number.name}, "
        f"resume with: lsmha-sweep resume {started.folder}"
    )
    assert "Traceback" not in started.output()
    assert [row["id"] for row in table(started.folder, "trials")] == list(recorded)
    assert json.loads((started.folder / "summary.json").read_text())["complete"] is False
    _go_on(sweep(), started, recorded, reference)


def test_a_second_signal_ends_a_sweep_at_once_and_loses_nothing(
    started: RunningSweep, sweep: Callable[..., Sweep], reference: Reference
) -> None:
    os.kill(started.process.pid, signal.SIGINT)
    time.sleep(0.3)
    os.kill(started.process.pid, signal.SIGINT)
    assert started.process.wait(60) == 130, started.output()
    started.wait_until(lambda: not started.processes())
    assert "Traceback" not in started.output()
    _go_on(sweep(), started, started.records(), reference)


def test_a_killed_sweep_leaves_no_process(
    started: RunningSweep, sweep: Callable[..., Sweep], reference: Reference
) -> None:
    os.kill(started.process.pid, signal.SIGKILL)
    started.process.wait(PATIENCE_S)
    started.wait_until(lambda: not started.processes())
    _go_on(sweep(), started, started.records(), reference)


def _go_on(sweep: Sweep, interrupted: RunningSweep, recorded: dict[str, object], reference: Reference) -> None:
    assert sweep.run == interrupted.folder
    sweep.complete(*sweep.again("resume"))
    assert {name: sweep.records()[name] for name in recorded} == recorded
    assert_nothing_lost(sweep.run, reference.run)
