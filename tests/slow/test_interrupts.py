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
def started(tmp_path: Path, warm: dict[str, str], request: pytest.FixtureRequest) -> Iterator[RunningSweep]:
    """A sweep on a cluster of its own that has trained something; whatever is left of it is killed in the end.

    Its output is `piped` into a `tee`, or its workers are not forked but start as a user's do (`cold`).
    """
    how = getattr(request, "param", None)
    running = RunningSweep(tmp_path, piped=how == "piped", env={} if how == "cold" else warm)
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
    {"process": started.process.send_signal, "group": started.signal_group}[whom](number)
    assert started.process.wait(PATIENCE_S) == code, started.output()
    *_, last = started.output().splitlines()
    assert last == (
        f"incomplete, {len(started.records())} of 8 trials and 0 finalist runs recorded at {number.name}, "
        f"resume with: lsmha-sweep resume {started.folder}"
    )
    _assert_interrupted(started)
    _go_on(sweep(), started, started.records(), reference)


@pytest.mark.parametrize("started", ["piped"], indirect=True)
def test_a_sweep_whose_reader_ctrl_c_ended_first_is_interrupted_all_the_same(started: RunningSweep) -> None:
    started.signal_group(signal.SIGINT)
    assert started.process.wait(PATIENCE_S) == 130, started.output()
    _assert_interrupted(started)


def _assert_interrupted(ended: RunningSweep) -> None:
    ended.wait_until(lambda: not ended.processes())
    recorded = ended.records()
    assert 2 <= len(recorded) < 8
    assert "Traceback" not in ended.output()
    assert [row["id"] for row in table(ended.folder, "trials")] == list(recorded)
    assert json.loads((ended.folder / "summary.json").read_text())["complete"] is False
    assert json.loads((ended.folder / "status.json").read_text())["stage"] == "interrupted"


def test_a_second_signal_ends_a_sweep_at_once_and_loses_nothing(
    started: RunningSweep, sweep: Callable[..., Sweep], reference: Reference
) -> None:
    os.kill(started.process.pid, signal.SIGINT)
    time.sleep(0.3)
    os.kill(started.process.pid, signal.SIGINT)
    assert started.process.wait(PATIENCE_S) == 130, started.output()
    started.wait_until(lambda: not started.processes())
    assert "Traceback" not in started.output()
    _go_on(sweep(), started, started.records(), reference)


@pytest.mark.parametrize("started", ["cold"], indirect=True)
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
