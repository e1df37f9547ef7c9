"""Pictures of an analysis: field matrices of the heads, the trend along the blocks, and who recognizes which label."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from lsmha.analysis.analyze import Analysis, GroupAnalysis, TapAnalysis
from lsmha.io.atomic import atomic_path
from lsmha.io.paths import RunPath

MAX_HEADS_SHOWN = 8


def save_plots(analysis: Analysis, folder: RunPath, *, title: str) -> None:
    """Write `blocks.png`, `heads_per_label.png`, and for each transformer block `shp_block<m>.png`."""
    folder.mkdir(exist_ok=True)
    _save(_plot_blocks(analysis, title), folder / "blocks.png")
    _save(_plot_heads_per_label(analysis, title), folder / "heads_per_label.png")
    for tap in analysis.taps:
        for group in tap.groups:
            if group.kind == "head":
                figure = _plot_matrices(tap, group, analysis, title)
                _save(figure, folder / f"shp_block{tap.tap.block}.png")


def _save(figure: Figure, path: RunPath) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary)


def _main_groups(analysis: Analysis) -> list[tuple[TapAnalysis, GroupAnalysis]]:
    """Of each tap the heads where it has any, else its filters or nodes."""
    return [(tap, tap.groups[0]) for tap in analysis.taps]


def _plot_blocks(analysis: Analysis, title: str) -> Figure:
    pairs = _main_groups(analysis)
    names = [f"{tap.tap.block}\n{tap.tap.kind if group.kind == 'node' else group.kind}s" for tap, group in pairs]
    places = range(len(pairs))
    figure = Figure(figsize=(10, 3.4), dpi=150, layout="constrained")
    accuracy, snr, clusters = figure.subplots(1, 3)
    accuracy.plot(places, [tap.accuracy.readout for tap, _ in pairs], "o-", label="read-out of the block")
    alone = [(place, tap.accuracy.alone) for place, (tap, _) in enumerate(pairs) if tap.accuracy.alone is not None]
    if alone:
        means = [values.mean().item() for _, values in alone]
        accuracy.plot([place for place, _ in alone], means, "s--", label="one head alone, mean")
    accuracy.axhline(analysis.test_accuracy, color="0.5", lw=1, label="network")
    accuracy.set_ylim(bottom=0)
    accuracy.set_ylabel("test accuracy")
    snr.plot(places, [group.statistics.field_snr for _, group in pairs], "o-", label="sum over units, raw fields")
    snr.plot(places, [group.statistics.mean_head_snr for _, group in pairs], "s--", label="mean unit, raw fields")
    snr.plot(places, [group.statistics.cluster_snr for _, group in pairs], "^:", label="from clusters")
    snr.set_ylim(bottom=0)
    snr.set_ylabel("signal-to-noise ratio")
    clusters.plot(places, [group.statistics.means.clusters_per_head for _, group in pairs], "o-", label="clusters")
    clusters.plot(places, [group.statistics.means.noise for _, group in pairs], "s--", label="noise elements")
    clusters.set_ylim(bottom=0)
    clusters.set_ylabel("per head or filter")
    for axes in (accuracy, snr, clusters):
        axes.set_xticks(list(places), names)
        axes.set_xlabel("block")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=7)
    figure.suptitle(f"{title}: {analysis.test_images:,} test images", fontsize=10)
    return figure


def _plot_heads_per_label(analysis: Analysis, title: str) -> Figure:
    pairs = _main_groups(analysis)
    figure = Figure(figsize=(8, 1.2 + 1.1 * len(pairs)), dpi=150, layout="constrained")
    labels = np.arange(len(analysis.class_names))
    for axes, (tap, group) in zip(np.ravel(figure.subplots(len(pairs), sharex=True)), pairs, strict=True):
        heads = group.symmetry.heads_per_label
        axes.bar(labels, heads, color=np.where(heads > 0, "C0", "C3"), width=0.8)
        axes.set_ylabel(f"block {tap.tap.block}\n{group.kind}s", fontsize=8)
        axes.set_ylim(0, max(1, len(group.fields)))
        axes.axhline(heads.mean(), color="0.4", lw=0.8, ls="--")
    if len(labels) <= 20:
        axes.set_xticks(labels, analysis.class_names, rotation=45, ha="right", fontsize=7)
    axes.set_xlabel("label")
    figure.suptitle(f"{title}: heads (filters) above the threshold for each label, of all; dashed: mean", fontsize=10)
    return figure


def _plot_matrices(tap: TapAnalysis, group: GroupAnalysis, analysis: Analysis, title: str) -> Figure:
    count = len(group.fields)
    shown = np.unique(np.linspace(0, count - 1, min(count, MAX_HEADS_SHOWN)).round().astype(int))
    figure = Figure(figsize=(1.6 * len(shown) + 0.9, 4.1), dpi=150, layout="constrained")
    grid: Any = figure.subplots(2, len(shown), squeeze=False)
    image: Any = None
    for column, head in enumerate(shown):
        matrix = group.fields[head].numpy()
        largest = matrix.max()
        relative = matrix / largest if largest > 0 else np.zeros_like(matrix)
        clusters = group.statistics.clusters[head]
        order = cluster_order(clusters, len(matrix))
        for axes, values in zip(grid[:, column], (relative, relative[np.ix_(order, order)]), strict=True):
            image = axes.imshow(values, cmap="RdBu_r", vmin=-1, vmax=1, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        _outline(grid[1, column], clusters)
        grid[0, column].set_title(f"head {head}", fontsize=8)
        noise, size = group.statistics.noise[head], group.statistics.labels_per_head[head]
        grid[1, column].set_xlabel(f"{len(clusters)} cl., {size} labels\nnoise {noise}", fontsize=7)
    grid[0, 0].set_ylabel("input label", fontsize=8)
    grid[1, 0].set_ylabel("by cluster", fontsize=8)
    figure.colorbar(image, ax=grid, label="field / largest field", shrink=0.7)
    figure.suptitle(
        f"{title}: block {tap.tap.block}, {len(shown)} of {count} heads; columns are output units", fontsize=9
    )
    return figure


def cluster_order(clusters: list[list[int]], num_labels: int) -> NDArray[np.int64]:
    """Labels (K,) with those of each cluster side by side, largest cluster first, then the rest."""
    clustered = [label for cluster in sorted(clusters, key=len, reverse=True) for label in cluster]
    rest = [label for label in range(num_labels) if label not in set(clustered)]
    return np.array(clustered + rest, dtype=np.int64)


def _outline(axes: Any, clusters: list[list[int]]) -> None:
    start = 0
    for size in sorted(map(len, clusters), reverse=True):
        edge = start - 0.5
        axes.plot(
            [edge, edge + size, edge + size, edge, edge], [edge, edge, edge + size, edge + size, edge], "k-", lw=0.7
        )
        start += size
