"""Tables of analyses, committees and prunings for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table


def analysis_table(name: str, blocks: Iterable[Mapping[str, Any]]) -> Table:
    """Heads or filters of each block of one network."""
    columns = ("readout_accuracy", "clusters", "size", "noise", "snr", "head snr", "unrecognised")
    table = _table(f"{name}: means per head or filter", "block", "units", numbers=columns)
    for row in blocks:
        if row["unit"] not in ("head", "filter"):
            continue
        table.add_row(
            f"{row['block']}.{row['tap']}",
            f"{row['num_units']} {row['unit']}s",
            f"{row['readout_accuracy']:.4f}",
            *(_number(row[column]) for column in ("clusters_per_head", "cluster_size", "noise")),
            *(_number(row[column]) for column in ("field_snr", "mean_head_snr")),
            str(row["num_unrecognised_labels"]),
        )
    return table


def committees_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Groups of committees, and mixed head counts against one architecture, by the first rule."""
    rows = list(rows)
    rule = rows[0]["rule"] if rows else ""
    table = _table(
        f"Committees by {rule}: test accuracy, and gains with 95 % intervals over test images",
        "committee",
        numbers=("size", "n", "accuracy", "gain over best member", "gain over mean member"),
    )
    for row in rows:
        if row["rule"] != rule:
            continue
        if row["kind"] == "group":
            gains = (_gain(row, "gain_over_best"), _gain(row, "gain_over_mean"))
            table.add_row(row["group"], str(row["size"]), str(row["num_committees"]), f"{row['accuracy']:.4f}", *gains)
        elif row["kind"] == "contrast":
            table.add_row(row["group"], str(row["size"]), "", "", _gain(row, "gain"), "")
    return table


def pruning_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Test accuracy of each mask after retraining."""
    table = _table(
        "Pruning: test accuracy after retraining",
        "network",
        "method",
        "mask",
        numbers=("threshold", "kept", "of model", "masked val_accuracy", "test_accuracy"),
    )
    for row in rows:
        table.add_row(
            row["id"],
            row["method"],
            row["mask"],
            "" if row["threshold"] is None else f"{row['threshold']:g}",
            f"{row['kept_of_connections']:.3f}",
            f"{row['kept_of_model']:.3f}",
            f"{row['val_accuracy_masked']:.4f}",
            f"{row['test_accuracy']:.4f}",
        )
    return table


def _table(title: str, *names: str, numbers: tuple[str, ...]) -> Table:
    table = Table(title=title, title_justify="left")
    for name in names:
        table.add_column(name, overflow="fold")
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _gain(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name]:+.4f} [{row[f'{name}_low']:+.4f}, {row[f'{name}_high']:+.4f}]"
