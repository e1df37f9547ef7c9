"""Tables of analyses, committees and prunings for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.table import Table


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


def committees_table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """Groups of committees, and mixed head counts against one architecture, by the first rule."""
    rows = list(rows)
    rule = rows[0]["rule"] if rows else ""
    table = _table(
        f"Committees by {rule}: test accuracy in %, gains over members in points [95 %]",
        "committee",
        numbers=("size", "n", "accuracy", "over best", "over mean"),
    )
    for row in rows:
        if row["rule"] != rule:
            continue
        if row["kind"] == "group":
            gains = (_gain(row, "gain_over_best"), _gain(row, "gain_over_mean"))
            counts = (str(row["size"]), str(row["num_committees"]))
            table.add_row(row["group"].replace("_", " "), *counts, f"{100 * row['accuracy']:.2f}", *gains)
        elif row["kind"] == "contrast":
            table.add_row("mixed heads over same architecture", str(row["size"]), "", "", _gain(row, "gain"), "")
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
    mean, low, high = (100 * row[key] for key in (name, f"{name}_low", f"{name}_high"))
    return f"{mean:+.2f} [{low:.2f}, {high:.2f}]"
