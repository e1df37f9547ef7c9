"""Unit clusters: which labels a head, node or filter tells apart, read off its matrix of mean output fields.

Method: arXiv:2501.12880 and its published code.

Shapes: H heads (or nodes, or filters), K labels. In a field matrix, a row is the label of the input and a column is
an output unit; fields have the unit of logits, but only their ratios count here.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from lsmha.shapes import Bool


def binarize_fields(fields: ArrayLike, threshold: float = 0.3) -> Bool[np.ndarray, "H K K"]:
    """Which fields exceed a fraction of the largest field of their own matrix; both are compared in float32.

    A matrix whose largest field is not positive recognizes nothing, so it is all False. (The published code divides by
    the signed maximum all the same, which makes one full cluster of an all-negative matrix.)

    Args:
        fields: (H, K, K) mean fields, with H and K at least 1: an array, or a detached tensor on the CPU.
        threshold: In [0, 1); a field equal to this fraction does not exceed it.

    Returns:
        The "ones" of the binarized matrices.

    Raises:
        ValueError: `fields` is not (H, K, K) or not finite in float32, or `threshold` is outside [0, 1).
    """
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must be at least 0 and below 1, but got {threshold!r}")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported as such
        matrices = np.asarray(fields, dtype=np.float32)
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2] or matrices.size == 0:
        raise ValueError(f"fields must have shape (heads, labels, labels), none of them 0, but got {matrices.shape}")
    finite = np.isfinite(matrices)
    if not finite.all():
        first = int((~finite).any(axis=(1, 2)).argmax())
        raise ValueError(
            f"fields must be finite in float32, but {matrices.size - finite.sum()} are not, first in matrix {first}"
        )
    peak = matrices.max(axis=(1, 2), keepdims=True)
    scale = np.where(peak > 0, peak, np.float32(1))  # where nothing is positive, nothing exceeds a threshold
    with np.errstate(over="ignore"):  # a large negative field over a tiny maximum: -inf is below every threshold
        return (matrices / scale) > np.float32(threshold)


def find_clusters(fields: ArrayLike, threshold: float = 0.3) -> list[list[list[int]]]:
    """The clusters of every head, by `greedy_clusters` on its binarized matrix.

    Args and errors are those of `binarize_fields`.

    Returns:
        H lists of clusters, each an ascending list of labels; a head that recognizes nothing has no cluster.
    """
    return [greedy_clusters(ones) for ones in binarize_fields(fields, threshold)]


def greedy_clusters(ones: Bool[np.ndarray, "K K"]) -> list[list[int]]:
    """Disjoint sets of labels whose sub-matrices are all ones, found greedily in ascending order.

    The candidates are the labels with a one on the diagonal. Each cluster starts with the smallest candidate left and
    goes once through the others in order, taking each with which its sub-matrix stays all ones. So every candidate is
    in exactly one cluster.

    Args:
        ones: One binarized matrix.

    Returns:
        The clusters in the order of their smallest label, each an ascending list of labels.
    """
    # The sub-matrix over a cluster and a new label stays all ones just when the label fits every member both ways.
    compatible = ones & ones.T
    left = ones.diagonal().copy()
    clusters = []
    while left.any():
        cluster: list[int] = []
        fits = left.copy()
        while fits.any():
            label = int(fits.argmax())
            cluster.append(label)
            fits &= compatible[label]
            fits[label] = False
        left[cluster] = False
        clusters.append(cluster)
    return clusters
