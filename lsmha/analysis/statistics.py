"""What the unit clusters of one block amount to: how many, how large, how noisy, and how much signal they carry.

Clusters and their noise: arXiv:2501.12880 and its published code. Signal-to-noise ratios: arXiv:2309.07537 and
arXiv:2305.18078.

Shapes: H heads (or nodes, or filters), K labels. In a field matrix, a row is the label of the input and a column is
an output unit, so the diagonal holds the right outputs.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lsmha.analysis.clusters import binarize_fields, greedy_clusters
from lsmha.shapes import Bool, Float64, Int


@dataclass(frozen=True)
class ClusterMeans:
    """Means over heads, or over clusters for `cluster_size`; NaN where there are none to average."""

    clusters_per_head: float
    cluster_size: float
    """Labels per cluster. Heads without a cluster have no say in it."""
    labels_per_head: float
    noise: float
    column_noise: float


@dataclass(frozen=True, eq=False)
class FieldStatistics:
    """Clusters, noise and signal-to-noise ratios (SNR) of one block; see `field_statistics`.

    An SNR has no unit. It is infinite where there is signal and no noise, and NaN where there is neither.
    """

    clusters: list[list[list[int]]]
    """H lists of clusters, as of `find_clusters`."""
    ones: NDArray[np.int64]
    """(H,) fields above the threshold."""
    noise: NDArray[np.int64]
    """(H,) ones outside the clusters: `ones` less the sum over clusters of size squared. Where a head has no cluster,
    that is all of them."""
    column_noise: NDArray[np.int64]
    """(H,) the part of `noise` in the columns of labels that are in a cluster; 0 where a head has no cluster."""
    num_clusters: NDArray[np.int64]
    """(H,)"""
    labels_per_head: NDArray[np.int64]
    """(H,) labels in a cluster: the sum of the clusters' sizes, as clusters are disjoint."""
    empty: NDArray[np.bool_]
    """(H,) whether the head has no cluster. The published code leaves such heads out (it marks their noise -1)."""
    head_snr: NDArray[np.float64]
    """(H,) mean field on the right output over the root mean square field on wrong ones, of each head alone."""

    means: ClusterMeans
    """Over every head."""
    means_nonempty: ClusterMeans
    """Over the heads with a cluster."""
    cluster_sizes: dict[int, int]
    """How many clusters of the block have each size, by ascending size."""
    cluster_snr: float
    """From clusters and noise, over every head (see `field_statistics`). NaN if no head has a cluster."""
    cluster_snr_nonempty: float
    """The same over the heads with a cluster."""
    field_snr: float
    """As `head_snr`, of the fields summed over heads: what the whole read-out sees."""
    mean_head_snr: float
    """Mean of `head_snr` without the heads where it is NaN, as for fields that are all 0; NaN if that leaves none, and
    infinite if one head's is."""


def field_statistics(fields: ArrayLike, threshold: float = 0.3) -> FieldStatistics:
    """Clusters, noise and signal-to-noise ratios of the heads of one block.

    `cluster_snr` takes every field above the threshold for 1, every other for 0. With N heads of N_c clusters of C_s
    labels and n noise elements each, an input makes on average N N_c C_s / K on its right output. On each wrong one it
    makes N N_c C_s (C_s - 1) / (K (K - 1)) from within the clusters and N n / (K (K - 1)) from outside them, as noise
    is never on the diagonal: a label with a one there is in a cluster. With unequal heads and clusters, N N_c C_s is
    the sum over all clusters of their size, N N_c C_s (C_s - 1) that of size (size - 1), N n that over heads of their
    noise. K cancels in part, and

        cluster_snr = (K - 1) sum(size) / (sum(size (size - 1)) + sum(noise)).

    This is the mean right over the mean wrong output of the binarized matrices summed over heads, so how the labels
    are parted into clusters does not change it.

    Args:
        fields: (H, K, K) mean fields, with H and K at least 1: an array, or a detached tensor on the CPU.
        threshold: In [0, 1), as for `binarize_fields`.

    Raises:
        ValueError: `fields` is not (H, K, K) or not finite in float32, or `threshold` is outside [0, 1).
    """
    binary = binarize_fields(fields, threshold)
    counts = _count(binary)
    every = np.ones(len(binary), dtype=np.bool_)
    empty = counts.num_clusters == 0
    # float32 as for the clusters, then float64: no float32 overflows or vanishes when summed or squared.
    matrices = np.asarray(fields, dtype=np.float32).astype(np.float64)
    head_snr = _measured_snr(matrices)
    sizes = Counter(len(cluster) for of_head in counts.clusters for cluster in of_head)
    return FieldStatistics(
        clusters=counts.clusters,
        ones=counts.ones,
        noise=counts.noise,
        column_noise=counts.column_noise,
        num_clusters=counts.num_clusters,
        labels_per_head=counts.labels_per_head,
        empty=empty,
        head_snr=head_snr,
        means=counts.means(every),
        means_nonempty=counts.means(~empty),
        cluster_sizes=dict(sorted(sizes.items())),
        cluster_snr=counts.cluster_snr(every, binary.shape[-1]),
        cluster_snr_nonempty=counts.cluster_snr(~empty, binary.shape[-1]),
        field_snr=float(_measured_snr(matrices.sum(axis=0, keepdims=True))[0]),
        mean_head_snr=_mean(head_snr[~np.isnan(head_snr)]),
    )


@dataclass(frozen=True, eq=False)
class _Counts:
    """What is counted in the binarized fields of each head; arrays are (H,), fields as in `FieldStatistics`."""

    clusters: list[list[list[int]]]
    ones: NDArray[np.int64]
    num_clusters: NDArray[np.int64]
    labels_per_head: NDArray[np.int64]
    inside: NDArray[np.int64]
    """Ones in the clusters: the sum of size squared."""
    column_noise: NDArray[np.int64]

    @property
    def noise(self) -> Int[np.ndarray, " H"]:
        return self.ones - self.inside

    def means(self, heads: Bool[np.ndarray, " H"]) -> ClusterMeans:
        """Over the heads that the mask selects."""
        num_in_heads = self.num_clusters[heads].sum()
        return ClusterMeans(
            clusters_per_head=_mean(self.num_clusters[heads]),
            cluster_size=float(self.labels_per_head[heads].sum() / num_in_heads) if num_in_heads else float("nan"),
            labels_per_head=_mean(self.labels_per_head[heads]),
            noise=_mean(self.noise[heads]),
            column_noise=_mean(self.column_noise[heads]),
        )

    def cluster_snr(self, heads: Bool[np.ndarray, " H"], num_labels: int) -> float:
        """Over the heads that the mask selects."""
        signal = self.labels_per_head[heads].sum()
        if signal == 0:
            return float("nan")
        # sum(size (size - 1)) + sum(noise)
        wrong = (self.inside - self.labels_per_head + self.noise)[heads].sum()
        return float((num_labels - 1) * signal / wrong) if wrong else float("inf")


def _count(binary: Bool[np.ndarray, "H K K"]) -> _Counts:
    """Of binarized fields."""
    clusters = [greedy_clusters(ones) for ones in binary]
    inside = np.array([sum(len(cluster) ** 2 for cluster in of_head) for of_head in clusters], dtype=np.int64)
    # The labels in a cluster are those with a one on the diagonal, and every cluster lies in their columns.
    clustered = binary.diagonal(axis1=1, axis2=2)
    return _Counts(
        clusters=clusters,
        ones=binary.sum(axis=(1, 2), dtype=np.int64),
        num_clusters=np.array([len(of_head) for of_head in clusters], dtype=np.int64),
        labels_per_head=np.array([sum(map(len, of_head)) for of_head in clusters], dtype=np.int64),
        inside=inside,
        column_noise=(binary & clustered[:, None, :]).sum(axis=(1, 2), dtype=np.int64) - inside,
    )


def _measured_snr(matrices: Float64[np.ndarray, "n K K"]) -> Float64[np.ndarray, " n"]:
    """Mean diagonal over root mean square off the diagonal, of each matrix."""
    num_labels = matrices.shape[-1]
    signal = matrices.diagonal(axis1=1, axis2=2).mean(axis=1)
    wrong = np.where(np.eye(num_labels, dtype=np.bool_), 0.0, matrices)
    noise = np.sqrt((wrong**2).sum(axis=(1, 2)) / max(num_labels * (num_labels - 1), 1))
    with np.errstate(divide="ignore", invalid="ignore"):  # infinite without noise, NaN if without signal too
        return signal / noise


def _mean(values: NDArray[np.int64] | NDArray[np.float64]) -> float:
    with np.errstate(invalid="ignore"):  # of both infinities, as of nothing, there is no mean
        return float(values.mean()) if values.size else float("nan")
