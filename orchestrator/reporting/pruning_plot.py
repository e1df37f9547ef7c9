"""The picture of what pruning costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from lsmha.io.atomic import atomic_path
from lsmha.io.paths import RunPath


def plot_pruning(rows: Sequence[Mapping[str, Any]], path: RunPath, *, title: str) -> None:
    """Test accuracy against the fraction of weights kept, one panel for each network and method, as PNG."""
    panels = list(dict.fromkeys((row["id"], row["method"]) for row in rows))
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.3 * lines), dpi=150, layout="constrained")
    grid: Any = figure.subplots(lines, columns, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, (network, method) in zip(grid.flat, panels, strict=False):
        own = [row for row in rows if (row["id"], row["method"]) == (network, method)]
        for mask, style, label in (("fields", "o-", "by fields"), ("random", "s--", "random control")):
            points = sorted((row["kept_of_connections"], row["test_accuracy"]) for row in own if row["mask"] == mask)
            axes.plot([kept for kept, _ in points], [accuracy for _, accuracy in points], style, label=label)
        whole = [row["test_accuracy"] for row in own if row["mask"] == "none"]
        if whole:
            axes.axhline(sum(whole) / len(whole), color="0.5", lw=1, label="not pruned, retrained as long")
        axes.set_xlabel("weights kept of the pruned connections")
        axes.set_ylabel("test accuracy")
        axes.set_title(f"{network}: {method.upper()}", fontsize=9)
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)
    figure.suptitle(title, fontsize=10)
    with atomic_path(path) as temporary:
        figure.savefig(temporary)
