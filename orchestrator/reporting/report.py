"""Tables, the front's plot, and the summary of a run."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lsmha.io.atomic import atomic_path, atomic_write_text
from lsmha.io.paths import RunPath
from lsmha.pareto import hypervolume
from orchestrator.config.sweep import SweepConfig
from orchestrator.reporting.tables import committees_table
from orchestrator.run_folder.front import objective_values
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import TrialRecord
from orchestrator.search.space import describe_point

_FORMATS = {
    "val_accuracy": "{:.4f}",
    "val_loss": "{:.4f}",
    "latency_ms": "{:.3f}",
    "params": "{:,}",
    "macs": "{:,}",
    "seconds": "{:.0f}",
}


def front_table(ledger: Ledger, *, title: str = "Pareto front") -> Table:
    """The front so far, best in the first objective first."""
    metrics = list(dict.fromkeys([*(o.metric for o in ledger.config.objectives), "params"]))
    table = _table(title, *metrics)
    if "latency_ms" in metrics and (conditions := latency_conditions(ledger)):
        table.caption = f"latency_ms: median per image, {conditions}"
    for record in ledger.front():
        values = (_FORMATS[name].format(getattr(record, name)) for name in metrics)
        table.add_row(record.id, describe_point(record.point), *values)
    return table


def latency_conditions(ledger: Ledger) -> str:
    """What the latencies to choose by were measured on: batch size, type, mode, device; empty before there are any."""
    measured = [*ledger.front_latencies.values(), *ledger.latencies.values()]
    if not measured:
        return ""
    row = measured[0][0]
    on = row["device"] if ledger.config.latency_on_gpu() else f"{row['device']}, threads: {row['threads']}"
    return f"batch size {row['batch_size']}, {row['dtype']}, {row['mode']}, {on}"


def finalists_table(ledger: Ledger) -> Table:
    """The finalists: mean and standard deviation over the seeds, best validation accuracy first."""
    table = _table(
        f"Finalists after {ledger.config.finalist_epochs()} epochs: mean ± standard deviation over n seeds",
        *("n", "val_accuracy", "test_accuracy", "latency_ms"),
    )
    for row in finalist_summary(ledger):
        table.add_row(
            row["trial"],
            describe_point(row["point"]),
            str(row["n"]),
            _spread(row["val_accuracy"], row["val_accuracy_std"]),
            _spread(row["test_accuracy"], row["test_accuracy_std"]),
            "" if row["latency_ms"] is None else f"{row['latency_ms']:.3f}",
        )
    return table


def _table(title: str, *numbers: str) -> Table:
    """A table of configurations; a narrow terminal folds those, never the numbers."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("trial", no_wrap=True)
    table.add_column("configuration", overflow="fold", min_width=18)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def show_results(ledger: Ledger, console: Console) -> None:
    """Print the front, the finalists and their committees."""
    console.print(front_table(ledger))
    if any(record.completed for record in ledger.finalists):
        console.print(finalists_table(ledger))
    if ledger.committees:
        console.print(committees_table(ledger.committees))


def finalist_summary(ledger: Ledger) -> list[dict[str, Any]]:
    """One row per retrained configuration, over its completed seeds; sorted by mean validation accuracy.

    Standard deviations are of the sample (n - 1), None for n = 1.
    """
    runs: dict[str, list[TrialRecord]] = defaultdict(list)
    for record in ledger.finalists:
        if record.completed:
            runs[record.trial].append(record)
    rows = []
    for trial, records in runs.items():
        row: dict[str, Any] = {"trial": trial, "n": len(records), "seeds": sorted(record.seed for record in records)}
        for name in ("val_accuracy", "test_accuracy"):
            values = [getattr(record, name) for record in records]
            row[name] = float(np.mean(values))
            row[f"{name}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else None
        first = records[0]
        row |= {"epochs": first.epochs, "latency_ms": first.latency_ms, "params": first.params, "point": first.point}
        rows.append(row)
    return sorted(rows, key=lambda row: -row["val_accuracy"])


def write_summary(ledger: Ledger, session: Mapping[str, Any] | None = None) -> None:
    """Write `summary.json`: what came out, by the records, and what a `session` of the run says of itself; without one,
    what the last session said."""
    path = ledger.folder / "summary.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        before = {}
    now = dict(session or {})
    if "wall_seconds" in now:  # of all sessions that got as far as this
        now["wall_seconds"] = round(now["wall_seconds"] + before.get("wall_seconds", 0), 1)
    atomic_write_text(path, json.dumps({**before, **_outcome(ledger), **now}, indent=2) + "\n")


def _outcome(ledger: Ledger) -> dict[str, Any]:
    config = ledger.config
    states = [one["status"] for one in ledger.analyses.values()]
    return {
        "name": config.name,
        "trials": _counts(ledger.trials),
        "finalist_runs": _counts(ledger.finalists),
        "objectives": [objective.model_dump() for objective in config.objectives],
        "front": [record.id for record in ledger.front()],
        "hypervolume": front_hypervolume(ledger),
        "finalists": finalist_summary(ledger),
        "analyses": {status: states.count(status) for status in ("completed", "failed")},
        "committees": [row for row in ledger.committees if row["kind"] in ("group", "contrast")],
        "seeds": {
            "search": config.seed,
            "split": config.data.split_seed,
            "trials": config.train.seed,
            "finalists": list(config.finalists.seeds),
        },
    }


def front_hypervolume(ledger: Ledger) -> dict[str, Any] | None:
    """Hypervolume of the front and its reference point: the worst completed trial in each objective.

    None before two trials have been completed.
    """
    completed = [record for record in ledger.trials if record.completed]
    if len(completed) < 2:
        return None
    objectives = ledger.config.objectives
    values = objective_values(completed, objectives)
    directions = [objective.direction for objective in objectives]
    reference = [
        float(column.min() if direction == "maximize" else column.max())
        for column, direction in zip(values.T, directions, strict=True)
    ]
    return {"value": hypervolume(values, directions, reference), "reference": reference}


def plot_front(ledger: Ledger, path: RunPath) -> None:
    """Scatter of all completed trials over the first two objectives, with the front and the finalists' test spread.

    Writes nothing where there is but one objective or no completed trial.
    """
    from matplotlib.figure import Figure

    objectives = ledger.config.objectives
    completed = [record for record in ledger.trials if record.completed]
    if len(objectives) < 2 or not completed:
        return
    y_metric, x_metric = objectives[0].metric, objectives[1].metric
    figure = Figure(figsize=(7.5, 4.8), dpi=150, layout="constrained")
    axes = figure.subplots()
    front = ledger.front()
    on_front = {record.id for record in front}
    rest = [record for record in completed if record.id not in on_front]
    budget = f"{ledger.config.train.epochs} epochs"
    axes.scatter(*_xy(rest, x_metric, y_metric), color="0.7", s=28, label=f"trials ({budget})", zorder=2)
    line = sorted(front, key=lambda record: getattr(record, x_metric))
    axes.plot(*_xy(line, x_metric, y_metric), drawstyle="steps-post", color="C0", lw=1.2, zorder=1)
    axes.scatter(*_xy(line, x_metric, y_metric), color="C0", s=58, zorder=3, label=f"front ({budget})")
    in_rounds = [record for record in line if record.latency_p25_ms is not None]
    if x_metric == "latency_ms" and in_rounds:
        x, y = map(np.array, _xy(in_rounds, x_metric, y_metric))
        low, high = (
            np.array([getattr(one, name) for one in in_rounds]) for name in ("latency_p25_ms", "latency_p75_ms")
        )
        axes.errorbar(x, y, xerr=[x - low, high - x], fmt="none", color="C0", capsize=3, zorder=3)
    rows = [row for row in finalist_summary(ledger) if row["latency_ms"] is not None]
    if rows and (x_metric, y_metric) == ("latency_ms", "val_accuracy"):
        axes.errorbar(
            [row["latency_ms"] for row in rows],
            [row["test_accuracy"] for row in rows],
            yerr=[row["test_accuracy_std"] or 0 for row in rows],
            fmt="D",
            color="C3",
            ms=5,
            capsize=3,
            zorder=4,
            label=f"finalists, test ({rows[0]['epochs']} epochs, mean ± std over seeds)",
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


def _spread(mean: float, std: float | None) -> str:
    return f"{mean:.3f}" + ("" if std is None else f" ± {std:.3f}")


def _counts(records: list[TrialRecord]) -> dict[str, int]:
    completed = sum(record.completed for record in records)
    return {"completed": completed, "failed": len(records) - completed}
