"""Tables for the terminal: the front, the finalists, analyses, committees and prunings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from orchestrator.reporting.summary import finalist_summary
from orchestrator.run_folder.committee_rows import CommitteeContrast, CommitteeGroup, CommitteeRow
from orchestrator.run_folder.front import expected_on_front
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import PrunedNetwork
from orchestrator.search.space import describe_point
from orchestrator.terminal import Terminal

_FORMATS = {
    "val_accuracy": "{:.4f}",
    "val_loss": "{:.4f}",
    "latency_ms": "{:.3f}",
    "params": "{:,}",
    "macs": "{:,}",
    "seconds": "{:.0f}",
}


def show_results(ledger: Ledger, terminal: Terminal) -> None:
    """Print the front, the finalists and their committees."""
    terminal.show(front_table(ledger))
    if any(record.completed for record in ledger.finalists):
        terminal.show(finalists_table(ledger))
    if ledger.committees is not None:
        terminal.show(committees_table(ledger.committees.rows))


def front_table(ledger: Ledger, *, title: str = "Pareto front") -> Table:
    """The front so far, best in the first objective first; then, dimmed, trials that pause and are expected on it."""
    metrics = list(dict.fromkeys([*(objective.metric for objective in ledger.config.objectives), "params"]))
    table = _configurations_table(title, *metrics)
    if "latency_ms" in metrics and (conditions := latency_conditions(ledger)):
        table.caption = f"latency_ms: median per image, {conditions}"
    for record in ledger.front():
        values = (_FORMATS[name].format(getattr(record, name)) for name in metrics)
        table.add_row(record.id, describe_point(record.point), *values)
    for record in expected_on_front(ledger.trials, list(ledger.pauses.values()), ledger.config.objectives):
        expected = {name: _FORMATS[name].format(getattr(record, name)) for name in metrics}
        trained = ledger.config.trained_objective()
        assert trained is not None
        expected[trained.metric] += f" ± {record.predicted_sd:.4f}"
        where = f"{describe_point(record.point)} (expected after {record.epochs} epochs)"
        table.add_row(record.id, where, *expected.values(), style="dim")
    return table


def finalists_table(ledger: Ledger) -> Table:
    """The finalists: mean and standard deviation over the seeds, best validation accuracy first."""
    table = _configurations_table(
        f"Finalists after {ledger.config.finalist_epochs()} epochs: mean ± standard deviation over n seeds",
        *("n", "val_accuracy", "test_accuracy", "latency_ms"),
    )
    for finalist in finalist_summary(ledger):
        table.add_row(
            finalist.trial,
            describe_point(finalist.point),
            str(finalist.n),
            _spread(finalist.val_accuracy, finalist.val_accuracy_std),
            _spread(finalist.test_accuracy, finalist.test_accuracy_std),
            "" if finalist.latency_ms is None else f"{finalist.latency_ms:.3f}",
        )
    return table


def latency_conditions(ledger: Ledger) -> str:
    """What the latencies to choose by were measured on: batch size, type, mode, device; empty before there are any."""
    measured = [*ledger.front_latencies.values(), *ledger.latencies.values()]
    if not measured:
        return ""
    row = measured[0].first
    on = row["device"] if ledger.config.latency_on_gpu() else f"{row['device']}, threads: {row['threads']}"
    return f"batch size {row['batch_size']}, {row['dtype']}, {row['mode']}, {on}"


def main_rows(blocks: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The first row of each tap: its heads where it has any, else its filters or nodes."""
    first: dict[tuple[int, str], Mapping[str, Any]] = {}
    for row in blocks:
        first.setdefault((row["block"], row["tap"]), row)
    return list(first.values())


def analysis_table(name: str, blocks: Iterable[Mapping[str, Any]]) -> Table:
    """Heads or filters of each block of one network."""
    columns = ("accuracy", "clusters", "size", "noise", "SNR", "unit SNR", "unknown")
    table = _table(
        f"{name}: accuracy of the read-out, means per unit, labels known to none", "block", "units", numbers=columns
    )
    for row in main_rows(blocks):
        table.add_row(
            f"{row['block']}.{row['tap']}",
            f"{row['num_units']} {row['unit']}s",
            f"{row['readout_accuracy']:.4f}",
            *(_number(row[column]) for column in ("clusters_per_head", "cluster_size", "noise")),
            *(_number(row[column]) for column in ("field_snr", "mean_head_snr")),
            str(row["num_unrecognized_labels"]),
        )
    return table


def committees_table(rows: Sequence[CommitteeRow]) -> Table:
    """Groups of committees, and mixed head counts against one architecture, by the first rule."""
    rule = rows[0].rule if rows else ""
    table = _table(
        f"Committees by {rule}: test accuracy in %, gains over members in points [95 %]",
        "committee",
        numbers=("size", "n", "accuracy", "over best", "over mean"),
    )
    for row in rows:
        if row.rule != rule:
            continue
        if isinstance(row, CommitteeGroup):
            over_best = _gain(row.gain_over_best, row.gain_over_best_low, row.gain_over_best_high)
            over_mean = _gain(row.gain_over_mean, row.gain_over_mean_low, row.gain_over_mean_high)
            counts = (str(row.size), str(row.num_committees))
            table.add_row(row.group.replace("_", " "), *counts, f"{100 * row.accuracy:.2f}", over_best, over_mean)
        elif isinstance(row, CommitteeContrast):
            gain = _gain(row.gain, row.gain_low, row.gain_high)
            table.add_row("mixed heads over same architecture", str(row.size), "", "", gain, "")
    return table


def pruning_table(networks: Iterable[PrunedNetwork]) -> Table:
    """Test accuracy of each mask after retraining."""
    table = _table(
        "Pruning: test accuracy after retraining",
        "network",
        "method",
        "mask",
        numbers=("threshold", "kept", "of model", "masked val_accuracy", "test_accuracy"),
    )
    for network in networks:
        table.add_row(
            network.id,
            network.method,
            network.mask,
            "" if network.threshold is None else f"{network.threshold:g}",
            f"{network.kept_of_connections:.3f}",
            f"{network.kept_of_model:.3f}",
            f"{network.val_accuracy_masked:.4f}",
            f"{network.test_accuracy:.4f}",
        )
    return table


def _configurations_table(title: str, *numbers: str) -> Table:
    """A table of configurations; a narrow terminal folds those, never the numbers."""
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("trial", no_wrap=True)
    table.add_column("configuration", overflow="fold", min_width=18)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _table(title: str, *names: str, numbers: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _spread(mean: float, std: float | None) -> str:
    return f"{mean:.3f}" + ("" if std is None else f" ± {std:.3f}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _gain(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:+.2f} [{100 * low:.2f}, {100 * high:.2f}]"
