"""What a user sees while a sweep runs: a live view on a terminal, a line per event elsewhere."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from orchestrator.run_folder.records import TrialRecord
from orchestrator.search.space import Point, describe_point
from orchestrator.terminal import Terminal

_SHOWN = {
    "val_accuracy": "val_accuracy {:.4f}",
    "images_per_s": "{:,.0f} images/s",
    "utilization": "device {:.0%} busy",
}
"""What a running trial shows of its last epoch."""


class Progress:
    """The state of the current stage, and one plain line for each thing that ends."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self.title = ""
        self.total = 0
        self.done = 0
        self.failed = 0
        self.unit = ""
        self._epochs: dict[str, int] = {}
        """Of each trial, where epochs are counted."""
        self.running: dict[str, tuple[Point, int, dict[str, Any]]] = {}
        self.activity = ""
        self.expected = ""
        """What there is still to gain."""
        self._ended_before = 0
        self._stage_started = time.monotonic()

    def stage(self, title: str, total: int, *, unit: str = "training runs") -> None:
        """A stage of `total` pieces of work begins."""
        self.title, self.total, self.done, self.failed, self.activity = title, total, 0, 0, ""
        self.expected = ""
        self.unit = unit
        self._ended_before = 0
        self._epochs.clear()
        self.running.clear()
        self._stage_started = time.monotonic()
        self._terminal.say(f"{title}: {total} {unit}")

    def reached(self, done: int) -> None:
        """So many pieces of the stage's work are done; none has failed."""
        self.done = done

    def expects(self, gain: float | None) -> None:
        """What a further trial is expected to add to the front's hypervolume, over what that is, if it is known."""
        self.expected = "" if gain is None else f"a further trial is expected to add {gain:.1%} to the front"

    def say(self, text: str) -> None:
        """A plain line."""
        self._terminal.say(text)

    def part(self, run_id: str, activity: str, done: int, total: int) -> None:
        """A part of one run's work is done."""
        self.activity = f"{run_id}: {activity} {done}/{total}"

    def finished(self, run_id: str, outcome: str, *, failed: bool = False) -> None:
        """Work on a run that is no training ended, well or not."""
        self.done, self.failed, self.activity = self.done + (not failed), self.failed + failed, ""
        self._terminal.say(f"[{self.done + self.failed}/{self.total}] {run_id}: {'failed: ' * failed}{outcome}")

    def measuring(self, done: int, total: int) -> None:
        """Latency of `done` out of `total` architectures is known."""
        if done == total:
            self._terminal.say(f"measured the latency of {total} architecture(s)")
        self.activity = f"measuring latency {done}/{total}" if done < total else ""

    def making_rounds(self, made: int, total: int) -> None:
        """The latency of the front is measured in rounds."""
        if made == total:
            self._terminal.say(f"measured the latency of the front in {total} rounds")
        self.activity = f"measuring the latency of the front, round {made + 1}/{total}" if made < total else ""

    def started(self, run_id: str, point: Point, epochs: int) -> None:
        """A training run of `epochs` epochs begins."""
        self.activity = ""
        self.running[run_id] = (point, epochs, {})

    def epoch_ended(self, run_id: str, metrics: Mapping[str, Any], utilization: float | None = None) -> None:
        """A training run finished an epoch; `metrics` may lack some."""
        point, epochs, _ = self.running[run_id]
        self.running[run_id] = (point, epochs, {**metrics, "utilization": utilization})

    def ended(self, record: TrialRecord) -> None:
        """A training run ended, well or not, or pauses."""
        self.running.pop(record.id, None)
        self._count(record)
        if not record.failed:
            test = f" test_accuracy={record.test_accuracy:.4f}" if record.test_accuracy is not None else ""
            outcome = "" if record.completed else f"{record.status} after epoch {record.epochs}, "
            outcome += f"val_accuracy={record.val_accuracy:.4f}{test} latency_ms={_number(record.latency_ms)}"
            outcome += f" ({record.seconds:.0f} s, {_pace(record.curve)} images/s)"
        else:
            outcome = f"failed: {record.error}"
        self._terminal.say(
            f"[{self._counted}/{self.total}] {record.id} {describe_point(record.point)}: {outcome}",
        )

    def was_ended(self, record: TrialRecord) -> None:
        """A training run had ended in an earlier session."""
        self._count(record)
        self._ended_before = self._counted

    def _count(self, record: TrialRecord) -> None:
        if self.unit == "epochs":
            self.done += record.epochs - self._epochs.get(record.id, 0)
            self._epochs[record.id] = record.epochs
        else:
            self.done += not record.failed
        self.failed += record.failed

    @property
    def _counted(self) -> int:
        """How much of the stage's work has ended."""
        return self.done if self.unit == "epochs" else self.done + self.failed

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds to the end of the stage; None before the first run has ended."""
        ended = self._counted
        ended_now = ended - self._ended_before
        if not ended_now:
            return None
        return (time.monotonic() - self._stage_started) / ended_now * (self.total - ended)


class LiveProgress(Progress):
    """The live view: bars, running trials, and the front so far."""

    def __init__(self, terminal: Terminal, front: Callable[[], RenderableType]) -> None:
        super().__init__(terminal)
        self._front = front
        self._front_view: RenderableType = Text("")
        self._bars = Bars(
            TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        )
        self._task = self._bars.add_task("starting", total=None)

    def stage(self, title: str, total: int, *, unit: str = "training runs") -> None:
        super().stage(title, total, unit=unit)
        self._bars.reset(self._task, total=total, description=title)

    def reached(self, done: int) -> None:
        super().reached(done)
        self._bars.update(self._task, completed=done)

    def finished(self, run_id: str, outcome: str, *, failed: bool = False) -> None:
        super().finished(run_id, outcome, failed=failed)
        self._bars.update(self._task, completed=self._counted)

    def was_ended(self, record: TrialRecord) -> None:
        super().was_ended(record)
        self._bars.update(self._task, completed=self._counted)

    def ended(self, record: TrialRecord) -> None:
        super().ended(record)
        self._bars.update(self._task, completed=self._counted)
        self._front_view = self._front()

    def __rich__(self) -> RenderableType:
        left = self.seconds_left
        done = f"{self.done} of {self.total} epochs" if self.unit == "epochs" else f"{self.done} done"
        counts = Text(f"{done}, {len(self.running)} running, {self.failed} failed")
        if left is not None and self._counted < self.total:
            counts.append(f", about {timedelta(seconds=round(left))} left")
        if self.expected:
            counts.append(f", {self.expected}")
        if self.activity:
            counts.append(f", {self.activity}", style="cyan")
        running = Table(box=None, padding=(0, 1), show_header=False)
        for run_id, (point, epochs, metrics) in self.running.items():
            epoch = f"epoch {metrics.get('epoch', 0)}/{epochs}"
            # A worker can tell anything; the record will say what is wrong with it.
            told = {name: value for name, value in metrics.items() if isinstance(value, int | float)}
            shown = (form.format(told[name]) for name, form in _SHOWN.items() if name in told)
            # No markup: it is drawn anew with each plain line, and would come out as written.
            running.add_row(Text(run_id, style="cyan"), describe_point(point), epoch, *shown)
        return Group(self._bars, counts, running, self._front_view)


@contextmanager
def show_progress(terminal: Terminal, front: Callable[[], RenderableType] = lambda: Text("")) -> Iterator[Progress]:
    """The progress that fits the terminal: live where somebody watches, with the `front` so far; plain lines elsewhere,
    nothing when quiet."""
    if not terminal.is_live:
        yield Progress(terminal)
    else:
        progress = LiveProgress(terminal, front)
        # Twice a second: latency is measured while this process draws.
        with Live(progress, console=terminal.console, refresh_per_second=2, transient=True):
            yield progress


def _pace(curve: list[dict[str, float]]) -> str:
    """Training images per second, of the median epoch: the first one may be slow."""
    return f"{statistics.median(epoch['images_per_s'] for epoch in curve):,.0f}" if curve else "?"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f}"
