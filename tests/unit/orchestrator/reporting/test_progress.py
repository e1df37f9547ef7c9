"""What a user sees of running trials."""

from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console
from rich.live import Live
from rich.text import Text

from orchestrator.reporting.progress import LiveProgress
from orchestrator.run_folder.records import TrialRecord
from orchestrator.terminal import Terminal


def trial_record(run_id: str, **fields: Any) -> TrialRecord:
    return TrialRecord(
        id=run_id, trial=run_id, key="k", point={}, seed=0, params=1, macs=1, latency_ms=1.0, seconds=1.0,
        val_accuracy=0.5, **fields,
    )  # fmt: skip


def _view(metrics: dict[str, Any], utilization: float | None = None) -> str:
    console = Console(file=StringIO(), width=120, force_terminal=True, color_system=None)
    progress = LiveProgress(Terminal(console), lambda: Text("the front"))
    progress.stage("search", 5)
    progress.started("t0003", {"num_heads": 4}, 20)
    progress.epoch_ended("t0003", metrics, utilization)
    with console.capture() as captured:
        console.print(progress)
    return captured.get()


def test_a_running_trial_shows_its_pace_and_how_busy_its_device_is() -> None:
    view = _view({"epoch": 7, "val_accuracy": 0.5, "images_per_s": 12345.6}, 0.934)
    line = next(line for line in view.splitlines() if "t0003" in line)
    for words in ("num_heads=4", "epoch 7/20", "val_accuracy 0.5000", "12,346 images/s", "device 93% busy"):
        assert words in line


@pytest.mark.parametrize("told", [{"val_accuracy": None}, {"val_accuracy": "much", "images_per_s": None}, {}])
def test_what_is_not_known_is_not_shown(told: dict[str, Any]) -> None:
    line = next(line for line in _view({"epoch": 1} | told).splitlines() if "t0003" in line)
    assert "epoch 1/20" in line
    for word in ("busy", "images/s", "val_accuracy", "None"):
        assert word not in line


def test_a_line_in_between_leaves_the_view_as_it_is() -> None:
    console = Console(file=StringIO(), width=120, force_terminal=True, color_system=None)
    progress = LiveProgress(Terminal(console), lambda: Text("the front"))
    with console.capture() as captured, Live(progress, console=console, auto_refresh=False):
        progress.stage("search", 5)
        progress.started("t0003", {"num_heads": 4}, 20)
        progress.say("a [line] as it is")
    drawn = captured.get()
    assert "a [line] as it is" in drawn
    assert "t0003" in drawn
    assert "[cyan]" not in drawn


def test_epochs_are_counted_where_trials_pause() -> None:
    console = Console(file=StringIO(), width=120, force_terminal=True, color_system=None)
    progress = LiveProgress(Terminal(console), lambda: Text("the front"))
    progress.stage("search", 50, unit="epochs")
    for epochs, status in ((1, "paused"), (3, "paused"), (9, "completed")):
        progress.started("t0000", {"num_heads": 4}, 9)
        progress.ended(trial_record("t0000", status=status, epochs=epochs))
    progress.was_ended(trial_record("t0001", status="paused", epochs=3))
    progress.expects(0.0123)
    with console.capture() as captured:
        console.print(progress)
    assert "12 of 50 epochs, 0 running, 0 failed" in captured.get()
    assert "a further trial is expected to add 1.2% to the front" in captured.get()
