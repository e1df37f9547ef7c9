"""The picture of a run's committees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from lsmha.io.atomic import atomic_path
from lsmha.io.paths import RunPath


def plot_committees(rows: Sequence[dict[str, Any]], path: RunPath, *, title: str) -> None:
    """Accuracy against committee size, as PNG; nothing where there is no committee."""
    curves = [row for row in rows if row["kind"] == "size"]
    if not curves:
        return
    figure = Figure(figsize=(6.5, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    for color, (name, label) in zip(("C0", "C1"), (("all", "with attention"), ("cnn", "plain CNNs")), strict=True):
        of_group = [row for row in curves if row["group"] == name]
        if of_group:
            sizes = [row["size"] for row in of_group]
            axes.plot(sizes, [row["accuracy"] for row in of_group], "o-", color=color, label=f"{label}: mean")
            lowest, highest = ([row[f"{end}_accuracy"] for row in of_group] for end in ("lowest", "highest"))
            axes.fill_between(sizes, lowest, highest, color=color, alpha=0.15, label=f"{label}: lowest to highest")
    marks = {
        "mixed_heads": ("D", "C2", "mixed head counts"),
        "same_architecture": ("s", "C3", "one architecture, seeds"),
    }
    for name, (marker, color, label) in marks.items():
        points = [
            row for row in rows if row["kind"] == "group" and row["group"] == name and row["rule"] == curves[0]["rule"]
        ]
        if points:
            axes.plot(
                [row["size"] for row in points], [row["accuracy"] for row in points], marker, color=color, label=label
            )
    axes.set_xlabel("members; curves: " + ", ".join(dict.fromkeys(row["selection"] for row in curves)))
    axes.set_ylabel("test accuracy")
    axes.set_title(f"{title}: committees by {curves[0]['rule']}", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
