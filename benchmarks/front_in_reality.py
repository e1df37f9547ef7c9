"""A sweep by `search.strategy: front` beside the full grid of its space, both trained: epochs, hours and fronts.

    python benchmarks/front_in_reality.py GRID_RUN FRONT_RUN --out benchmarks/front_in_reality

Both are run folders on this machine, of the same space, data, recipe and `train.seed`, with precision and attention
pinned: `cifar10-small.yaml` as its full grid (see `grid_table.py`), and as it is. Hypervolume is over the grid's, by
the grid's latencies, behind the nadir of the grid's front, a tenth of its range worse; only trials count that got to
their end, and all epochs. Then the sweep is replayed with its own latencies through the search and the records of the
product, with the grid's curves in place of training: does it decide the same?
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from search_efficiency import behind

from lsmha.bench.report import Report, Table
from lsmha.config import ModelConfig
from lsmha.data import load_dataset
from orchestrator.execution.latency import LatencyCache
from orchestrator.run_folder.content_hash import architecture_hash
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import LatencyRecord, TrialRecord
from orchestrator.search.build import build_space
from orchestrator.search.front.gain import Reference, Staircase
from orchestrator.search.space import SearchSpace
from orchestrator.stages.segments import SegmentSearch


@dataclass(frozen=True)
class Sweep:
    """What a sweep took, and what it found."""

    name: str
    epochs: int
    share: float
    """Of the grid's epochs."""
    completed: int
    """Trials that got to their end."""
    latency_s: float
    """Wall clock before the first epoch: above all, latency is measured."""
    search_s: float
    """Wall clock from the first epoch to the last."""
    training_s: float
    """Of all epochs, over all workers."""
    hypervolume: float
    """Over the grid's."""
    behind: float
    """Accuracy that it lacks beside the grid's front, the most at any latency."""


@dataclass(frozen=True)
class Points:
    """Trials in the plane of the objectives."""

    latency_ms: np.ndarray
    val_accuracy: np.ndarray

    @classmethod
    def of(cls, trials: Sequence[TrialRecord], latency_ms: dict[str, float]) -> Points:
        """Those of trials, by their architecture's latency."""
        return cls(
            np.array([latency_ms[trial.architecture] for trial in trials]),
            np.array([trial.val_accuracy for trial in trials], dtype=float),
        )

    def front(self) -> Points:
        """Those that none is better than in both, from fast to slow."""
        order = np.lexsort((-self.val_accuracy, self.latency_ms))
        best = np.maximum.accumulate(self.val_accuracy[order])
        kept = order[np.flatnonzero(np.diff(best, prepend=-np.inf) > 0)]
        return Points(self.latency_ms[kept], self.val_accuracy[kept])


def sweep_of(name: str, ledger: Ledger, hypervolume: float, behind: float, grid_epochs: int) -> Sweep:
    """Its cost, by what its records say and when they were written."""
    assert ledger.fingerprint is not None
    began = ledger.record_path(ledger.fingerprint).stat().st_mtime
    written = [ledger.record_path(trial).stat().st_mtime for trial in ledger.begun]
    first = min(end - trial.seconds for end, trial in zip(written, ledger.begun, strict=True))
    epochs = sum(trial.epochs for trial in ledger.begun)
    return Sweep(
        name,
        epochs,
        epochs / grid_epochs,
        sum(trial.completed for trial in ledger.trials),
        first - began,
        max(written) - first,
        sum(trial.seconds for trial in ledger.begun),
        hypervolume,
        behind,
    )


class RecordedLatencies:
    """What a `LatencyCache` knows, where nothing is measured any more."""

    def __init__(self, records: dict[str, LatencyRecord]) -> None:
        self._records = records

    def latency_ms(self, model: ModelConfig) -> float:
        return self._records[architecture_hash(model)].latency_ms

    error = staticmethod(lambda _: None)


def is_decided_again(front: Ledger, grid: Ledger, space: SearchSpace, workers: int) -> bool:
    """Whether a replay, with the curves of the grid, makes the decisions that the sweep made."""
    curves = {space.key(trial.point): trial for trial in grid.trials}
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.create(Path(folder) / "replay", front.config)
        assert front.fingerprint is not None
        ledger.begin_session(front.config, front.fingerprint)
        latencies: LatencyCache = RecordedLatencies(front.latencies)  # type: ignore[assignment]
        search = SegmentSearch(front.config, space, ledger, latencies, workers=workers)
        while entries := search.decide():
            for entry in entries:
                known = curves[space.key(entry.point)]
                reached = entry.job.pause_at or known.epochs
                record = replace(
                    known, id=entry.trial, trial=entry.trial, key=entry.key, epochs=reached,
                    status="paused" if entry.job.pause_at else "completed", curve=known.curve[:reached],
                    **entry.decided,
                )  # fmt: skip
                ledger.add(record)
                search.tell(record)
        return steps_of(ledger) == steps_of(front)


def steps_of(ledger: Ledger) -> list[tuple[str, int, int, str]]:
    """What was decided on, in order: the trial, its epochs before and after, and why."""
    return [(s.trial, s.from_epoch, s.to_epoch, s.why) for decision in ledger.decisions for s in decision.segments]


def plot(grid: Points, front: Points, paused: Points, path: Path) -> None:
    """Both fronts, and all trials."""
    figure = Figure(figsize=(7.5, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.scatter(grid.latency_ms, grid.val_accuracy, color="0.75", s=26, label="full grid", zorder=2)
    axes.scatter(
        front.latency_ms, front.val_accuracy, facecolors="none", edgecolors="C3", marker="D", s=42, zorder=4,
        label="front: trained to the end",
    )  # fmt: skip
    axes.scatter(
        paused.latency_ms, paused.val_accuracy, color="C3", marker="x", s=18, lw=0.8, alpha=0.6, zorder=3,
        label="front: paused, where it got",
    )  # fmt: skip
    for points, color, width, label in ((grid, "C0", 4.0, "front of the grid"), (front, "C3", 1.4, "front found")):
        stairs = points.front()
        axes.plot(
            stairs.latency_ms, stairs.val_accuracy, drawstyle="steps-post", color=color, lw=width,
            alpha=0.5 if width > 2 else 1.0, label=label, zorder=1,
        )  # fmt: skip
    axes.set_xlabel("latency_ms, as the grid's sweep measured it")
    axes.set_ylabel("val_accuracy")
    axes.set_title("The full grid, and a sweep by search.strategy: front", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path)
    parser.add_argument("front", type=Path)
    parser.add_argument("--workers", type=int, default=2, help="trials at a time of both")
    parser.add_argument("--out", type=Path, help="stem of the files for the results")
    options = parser.parse_args()
    grid, front = Ledger.load(options.grid), Ledger.load(options.front)
    if grid.config.train != front.config.train or grid.config.space != front.config.space:
        raise SystemExit("error: both runs must have the same recipe, train.seed and space")
    latency_ms = {trial.architecture: trial.latency_ms or math.nan for trial in grid.trials}
    ended, paused = [t for t in front.trials if t.completed], [*front.pauses.values()]
    whole, found = Points.of(grid.trials, latency_ms), Points.of(ended, latency_ms)
    reference = Reference.behind(whole.latency_ms, whole.val_accuracy)
    volume, volume_found = (
        Staircase.under(points.latency_ms, points.val_accuracy, reference).hypervolume for points in (whole, found)
    )
    scores = {trial.architecture: trial.val_accuracy for trial in grid.trials}
    same = sum(trial.val_accuracy == scores[trial.architecture] for trial in ended)
    space = build_space(front.config, load_dataset(front.config.data))
    ended_ids = {trial.architecture for trial in ended}
    lacking = behind(
        whole.latency_ms, whole.val_accuracy, [i for i, t in enumerate(grid.trials) if t.architecture in ended_ids]
    )
    again = is_decided_again(front, grid, space, options.workers)
    grid_epochs = len(grid.trials) * grid.config.train.epochs
    sweeps = [
        sweep_of("full grid", grid, 1.0, 0.0, grid_epochs),
        sweep_of("search.strategy: front", front, volume_found / volume, lacking, grid_epochs),
    ]
    rows = [
        [
            sweep.name, f"{sweep.epochs:,} ({sweep.share:.1%})", str(sweep.completed), f"{sweep.latency_s:,.0f}",
            f"{sweep.search_s:,.0f}", f"{sweep.training_s:,.0f}", f"{sweep.hypervolume:.1%}",
            f"{100 * sweep.behind:.2f}",
        ]
        for sweep in sweeps
    ]  # fmt: skip
    Report(
        title="A sweep by front beside its full grid",
        protocol=f"{len(grid.trials)} networks on CIFAR-10 (5,000 images), {grid.config.train.epochs} epochs, "
        f"train.seed {grid.config.train.seed}, {options.workers} trials at a time; validation accuracy. {same} of the "
        f"{len(ended)} trials that front trained to their end have, bit for bit, the accuracy of the grid's. Replayed "
        f"with the grid's curves in place of training, it makes {'the same' if again else 'OTHER'} "
        f"{len(front.decisions)} decisions.",
        command="python benchmarks/front_in_reality.py GRID_RUN FRONT_RUN",
        tables=[
            Table(
                ["", "epochs", "trained to the end", "latency stage, s", "search, s", "training, s of all workers",
                 "hypervolume", "behind at any latency, points of accuracy"],
                rows,
            )
        ],
        results={"sweeps": sweeps},
    ).publish(options.out)  # fmt: skip
    if options.out is not None:
        plot(whole, found, Points.of(paused, latency_ms), options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
