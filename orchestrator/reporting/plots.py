"""Pictures of a run: the front, what committees gain, what pruning costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lsmha.io.atomic import atomic_path
from lsmha.io.paths import RunPath
from orchestrator.config.sweep import SweepConfig
from orchestrator.reporting.summary import finalist_summary
from orchestrator.reporting.tables import latency_conditions
from orchestrator.run_folder.committee_rows import CommitteeGroup, CommitteeRow, CommitteeSize
from orchestrator.run_folder.front import with_latency_of_rounds
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import PrunedNetwork, TrialRecord


def plot_front(ledger: Ledger, path: RunPath) -> None:
    """Scatter of all completed trials over the first two objectives, with the front and the finalists' test spread;
    those that pause at what they were expected to score in the end.

    Writes nothing where there is but one objective or no completed trial.
    """
    objectives = ledger.config.objectives
    completed = [record for record in ledger.trials if record.completed]
    if len(objectives) < 2 or not completed:
        return
    y_metric, x_metric = objectives[0].metric, objectives[1].metric
    figure = Figure(figsize=(7.5, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    front = ledger.front()
    on_front = {record.id for record in front}
    # As the search measured them, some would seem to be before the front that the rounds have moved.
    rest = [with_latency_of_rounds(record, ledger.front_latencies) for record in completed if record.id not in on_front]
    budget = f"{ledger.config.train.epochs} epochs"
    axes.scatter(*_xy(rest, x_metric, y_metric), color="0.7", s=28, label=f"trials ({budget})", zorder=2)
    line = sorted(front, key=lambda record: getattr(record, x_metric))
    axes.plot(*_xy(line, x_metric, y_metric), drawstyle="steps-post", color="C0", lw=1.2, zorder=1)
    axes.scatter(*_xy(line, x_metric, y_metric), color="C0", s=58, zorder=3, label=f"front ({budget})")
    if objectives[0] == ledger.config.trained_objective():
        _draw_predicted(axes, [record for record in ledger.pauses.values() if record.predicted is not None], x_metric)
    in_rounds = [record for record in line if record.latency_p25_ms is not None]
    if x_metric == "latency_ms" and in_rounds:
        x, y = map(np.array, _xy(in_rounds, x_metric, y_metric))
        low, high = (
            np.array([getattr(record, name) for record in in_rounds]) for name in ("latency_p25_ms", "latency_p75_ms")
        )
        axes.errorbar(x, y, xerr=np.stack([x - low, high - x]), fmt="none", color="C0", capsize=3, zorder=3)
    finalists = [finalist for finalist in finalist_summary(ledger) if finalist.latency_ms is not None]
    if finalists and (x_metric, y_metric) == ("latency_ms", "val_accuracy"):
        axes.errorbar(
            np.array([finalist.latency_ms for finalist in finalists], dtype=float),
            [finalist.test_accuracy for finalist in finalists],
            yerr=[finalist.test_accuracy_std or 0 for finalist in finalists],
            fmt="D",
            color="C3",
            ms=5,
            capsize=3,
            zorder=4,
            label=f"finalists, test ({finalists[0].epochs} epochs, mean ± std over seeds)",
        )
        y_metric_label = "accuracy: validation, finalists: test"
    else:
        y_metric_label = _axis_label(y_metric, ledger)
    for record in line:
        label = _point_label(record, ledger.config)
        place = (getattr(record, x_metric), getattr(record, y_metric))
        axes.annotate(label, place, textcoords="offset points", xytext=(6, -10), fontsize=7)
    axes.set_xlabel(_axis_label(x_metric, ledger))
    axes.set_ylabel(y_metric_label)
    axes.set_title(f"{ledger.config.name}: {len(completed)} trials, {len(front)} on the front", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def plot_committees(rows: Sequence[CommitteeRow], path: RunPath, *, title: str) -> None:
    """Accuracy against committee size, as PNG; nothing where there is no committee."""
    curves = [row for row in rows if isinstance(row, CommitteeSize)]
    if not curves:
        return
    figure = Figure(figsize=(6.5, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    for color, (name, label) in zip(("C0", "C1"), (("all", "with attention"), ("cnn", "plain CNNs")), strict=True):
        of_group = [row for row in curves if row.group == name]
        if of_group:
            sizes = [row.size for row in of_group]
            axes.plot(sizes, [row.accuracy for row in of_group], "o-", color=color, label=f"{label}: mean")
            lowest = [row.lowest_accuracy for row in of_group]
            highest = [row.highest_accuracy for row in of_group]
            axes.fill_between(sizes, lowest, highest, color=color, alpha=0.15, label=f"{label}: lowest to highest")
    marks = {
        "mixed_heads": ("D", "C2", "mixed head counts"),
        "same_architecture": ("s", "C3", "one architecture, seeds"),
    }
    for name, (marker, color, label) in marks.items():
        points = [
            row for row in rows if isinstance(row, CommitteeGroup) and row.group == name and row.rule == curves[0].rule
        ]
        if points:
            axes.plot([row.size for row in points], [row.accuracy for row in points], marker, color=color, label=label)
    axes.set_xlabel("members; curves: " + ", ".join(dict.fromkeys(row.selection for row in curves)))
    axes.set_ylabel("test accuracy")
    axes.set_title(f"{title}: committees by {curves[0].rule}", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def plot_pruning(networks: Sequence[PrunedNetwork], path: RunPath, *, title: str) -> None:
    """Test accuracy against the fraction of weights kept, one panel for each network and method, as PNG."""
    panels = list(dict.fromkeys((network.id, network.method) for network in networks))
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.3 * lines), dpi=150, layout="constrained")
    grid: Any = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (finalist, method) in zip(grid.flat, panels, strict=False):
        own = [network for network in networks if (network.id, network.method) == (finalist, method)]
        for mask, style, label in (("fields", "o-", "by fields"), ("random", "s--", "random control")):
            points = sorted(
                (network.kept_of_connections, network.test_accuracy) for network in own if network.mask == mask
            )
            axes.plot([kept for kept, _ in points], [accuracy for _, accuracy in points], style, label=label)
        whole = [network.test_accuracy for network in own if network.mask == "none"]
        if whole:
            axes.axhline(sum(whole) / len(whole), color="0.5", lw=1, label="not pruned, retrained as long")
        axes.set_xlabel("weights kept of the pruned connections")
        axes.set_ylabel("test accuracy")
        axes.set_title(f"{finalist}: {method.upper()}", fontsize=9)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _draw_predicted(axes: Any, paused: Sequence[TrialRecord], x_metric: str) -> None:
    """Trials that pause, where they were expected to end."""
    if paused:
        axes.errorbar(
            [getattr(record, x_metric) for record in paused],
            [record.predicted for record in paused],
            yerr=[record.predicted_sd for record in paused],
            fmt="o",
            color="0.6",
            mfc="none",
            ms=5,
            lw=0.8,
            alpha=0.5,
            zorder=1,
            label="paused: expected in the end ± sd",
        )


def _xy(records: list[TrialRecord], x_metric: str, y_metric: str) -> tuple[list[Any], list[Any]]:
    return [getattr(record, x_metric) for record in records], [getattr(record, y_metric) for record in records]


def _point_label(record: TrialRecord, config: SweepConfig) -> str:
    short = {"num_heads": "h", "depth": "d", "num_conv_blocks": "c", "embed_dim": "w"}
    return " ".join(
        f"{short[name]}{record.point[name]}"
        for name in config.space
        if name in short and record.point[name] is not None
    )


def _axis_label(metric: str, ledger: Ledger) -> str:
    if metric == "latency_ms":
        return "\n".join(filter(None, ["latency per image (ms)", latency_conditions(ledger)]))
    return {"seconds": "training time (s)"}.get(metric, metric)
