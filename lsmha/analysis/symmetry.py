"""Spontaneous symmetry breaking: whether the heads of a block share the labels out, rather than each learn all.

Single-head performance as in arXiv:2506.23832, for single nodes before that in arXiv:2501.12900. Nothing but training
tells one head from another, so heads that know different labels have broken the symmetry between them.

Shapes: H heads (or nodes, or filters), K labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lsmha.analysis.clusters import binarize_fields
from lsmha.shapes import Bool, Int, Shaped


@dataclass(frozen=True, eq=False)
class SymmetryBreaking:
    """How the heads of a block share the labels out. Everything about pairs of heads is NaN for a single head."""

    heads_per_label: NDArray[np.int64]
    """(K,) heads that recognize each label."""
    labels_per_head: NDArray[np.int64]
    """(H,) labels that each head recognizes."""
    unrecognized_labels: list[int]
    """Labels that no head recognizes, ascending."""
    mean_overlap: float
    """Labels that two heads share, averaged over all pairs of heads."""
    mean_jaccard: float
    """Labels that two heads share over labels that either recognizes, averaged over the pairs that recognize any."""
    null_mean_overlap: float
    """Mean of `mean_overlap` when each head recognizes as many labels as it does, but at random."""
    null_std_overlap: float
    """Standard deviation (population) of the same."""
    p_smaller: float
    """Chance that the overlap is as small as this or smaller at random. If low, heads specialize."""
    p_larger: float
    """Chance that the overlap is as large as this or larger at random. If low, heads know the same labels."""


def head_label_incidence(fields: ArrayLike, threshold: float = 0.3) -> Bool[np.ndarray, "H K"]:
    """Which labels each head recognizes: those whose own output exceeds the threshold.

    Args and errors are those of `binarize_fields`.
    """
    return binarize_fields(fields, threshold).diagonal(axis1=1, axis2=2).copy()


def symmetry_breaking(incidence: NDArray[np.bool_], *, permutations: int = 1000, seed: int = 0) -> SymmetryBreaking:
    """How the heads share the labels out, and whether they overlap less or more than at random.

    The null: every head's labels are permuted over the K labels, independently of the other heads. With r permutations
    of n as extreme as the observation, or more so, the p-value is (r + 1) / (n + 1), which is never zero.

    Args:
        incidence: (H, K) booleans, H and K at least 1: which labels each head recognizes.
        permutations: How many to sample, at least 1.
        seed: Of the sampling; not negative.

    Raises:
        ValueError: `incidence` is not (H, K) booleans, `permutations` is below 1 or `seed` below 0.
    """
    known = np.asarray(incidence)
    if known.ndim != 2 or known.size == 0 or known.dtype != np.bool_:
        raise ValueError(
            "incidence must be booleans of shape (heads, labels), none of them 0, "
            f"but got {known.dtype} of shape {known.shape}"
        )
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1, but got {permutations!r}")
    if seed < 0:
        raise ValueError(f"seed must be at least 0, but got {seed!r}")
    num_heads = len(known)
    heads_per_label = known.sum(axis=0, dtype=np.int64)
    labels_per_head = known.sum(axis=1, dtype=np.int64)
    overlap = jaccard = null_mean = null_std = p_smaller = p_larger = float("nan")
    if num_heads > 1:
        # Whole numbers of shared labels, so that equal overlaps compare as equal.
        shared = int(_total_overlap(heads_per_label))
        rng = np.random.default_rng(seed)
        null_heads = np.array([rng.permuted(known, axis=1).sum(axis=0) for _ in range(permutations)])
        null = _total_overlap(null_heads)
        num_pairs = num_heads * (num_heads - 1) // 2
        overlap = shared / num_pairs
        null_mean = float(null.mean() / num_pairs)
        null_std = float(null.std() / num_pairs)
        p_smaller = (int((null <= shared).sum()) + 1) / (permutations + 1)
        p_larger = (int((null >= shared).sum()) + 1) / (permutations + 1)
        jaccard = _mean_jaccard(known)
    return SymmetryBreaking(
        heads_per_label=heads_per_label,
        labels_per_head=labels_per_head,
        unrecognized_labels=np.flatnonzero(heads_per_label == 0).tolist(),
        mean_overlap=overlap,
        mean_jaccard=jaccard,
        null_mean_overlap=null_mean,
        null_std_overlap=null_std,
        p_smaller=p_smaller,
        p_larger=p_larger,
    )


def _total_overlap(heads_per_label: Int[np.ndarray, "*draws K"]) -> Shaped[np.ndarray, "*draws"] | np.int64:
    """Shared labels summed over pairs of heads: a label that n heads recognize is shared by n (n - 1) / 2 pairs."""
    return (heads_per_label * (heads_per_label - 1) // 2).sum(axis=-1)


def _mean_jaccard(known: Bool[np.ndarray, "H K"]) -> float:
    shared = known.astype(np.float64) @ known.T
    sizes = shared.diagonal()
    first, second = np.triu_indices(len(known), k=1)
    either = sizes[first] + sizes[second] - shared[first, second]
    ratios = shared[first, second][either > 0] / either[either > 0]
    return float(ratios.mean()) if ratios.size else float("nan")
