"""Trade-offs between objectives: which points are worth having, and how much they cover together.

Shapes: n points, m objectives. Computed by `moocore`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import moocore
import numpy as np
from numpy.typing import ArrayLike

from lsmha.shapes import Bool, Float64

Direction = Literal["maximize", "minimize"]


def pareto_mask(values: ArrayLike, directions: Sequence[Direction]) -> Bool[np.ndarray, " n"]:
    """Which points no other point dominates, that is, equals or betters in every objective and betters in one.

    Equal points are all on the front or all off it. Points with a NaN or infinite value are never on it, and
    dominate nothing.

    Args:
        values: (n, m), one row per point; n may be 0.
        directions: (m,) which way each objective is better.

    Raises:
        ValueError: `values` is not (n, m) for m >= 1, or `directions` holds an unknown one.
    """
    points, maximize = _checked(values, directions)
    finite = np.isfinite(points).all(axis=1)
    mask = np.zeros(len(points), dtype=np.bool_)
    mask[finite] = moocore.is_nondominated(points[finite], maximise=maximize, keep_weakly=True)
    return mask


def pareto_mask_with_ties(
    values: ArrayLike, directions: Sequence[Direction], *, measured: int, low: ArrayLike, high: ArrayLike
) -> Bool[np.ndarray, " n"]:
    """Which points no other point on the front dominates, where points whose ranges overlap tie in one objective.

    Of two points that tie in latency, say, the more accurate one dominates, though it may be slower by a hair; if they
    are as accurate as each other, both stay. Ties are not transitive: a point that only points off the front dominate
    is on it.

    Args:
        values: (n, m), one row per point; n may be 0.
        directions: (m,) which way each objective is better.
        measured: The objective that is known by a range, 0 to m - 1.
        low: (n,) lower ends of the ranges.
        high: (n,) upper ends.

    Raises:
        ValueError: As for `pareto_mask`.
    """
    points, maximize = _checked(values, directions)
    signs = np.where(maximize, -1.0, 1.0)
    costs = points * signs
    ends = np.stack([np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)]) * signs[measured]
    best, worst = ends.min(axis=0), ends.max(axis=0)
    exact = np.delete(costs, measured, axis=1)
    # Whatever dominates a point comes before it: as good in all exact objectives, and if no better, then the faster.
    order = np.lexsort((costs[:, measured], *exact.T[::-1]))
    front: list[int] = []
    for point in order:
        if np.isfinite([*costs[point], best[point], worst[point]]).all() and not any(
            (exact[other] <= exact[point]).all()
            and best[other] <= worst[point]
            and ((exact[other] < exact[point]).any() or worst[other] < best[point])
            for other in front
        ):
            front.append(int(point))
    mask = np.zeros(len(points), dtype=np.bool_)
    mask[front] = True
    return mask


def hypervolume(values: ArrayLike, directions: Sequence[Direction], reference: Sequence[float]) -> float:
    """Volume that the points dominate, bounded by a reference point; in the product of the objectives' units.

    Points that are not better than the reference in every objective add nothing, nor do points with a NaN or
    infinite value.

    Args:
        values: (n, m), one row per point; n may be 0.
        directions: (m,) which way each objective is better.
        reference: (m,) the worst value of interest of each objective.

    Raises:
        ValueError: As for `pareto_mask`, or `reference` is not m finite numbers.
    """
    points, maximize = _checked(values, directions)
    bound = np.asarray(reference, dtype=np.float64)
    if bound.shape != points.shape[1:] or not np.isfinite(bound).all():
        raise ValueError(f"reference must be {points.shape[1]} finite numbers, but got {reference!r}")
    finite = points[np.isfinite(points).all(axis=1)]
    return float(moocore.hypervolume(finite, ref=bound, maximise=maximize))


def _checked(values: ArrayLike, directions: Sequence[Direction]) -> tuple[Float64[np.ndarray, "n m"], list[bool]]:
    points = np.asarray(values, dtype=np.float64)
    unknown = [direction for direction in directions if direction not in get_args(Direction)]
    if unknown:
        raise ValueError(f"directions must be of {get_args(Direction)}, but got {unknown[0]!r}")
    if not directions or points.ndim != 2 or points.shape[1] != len(directions):
        raise ValueError(
            "values must have shape (points, objectives) with one direction per objective, "
            f"but got shape {points.shape} and directions={directions!r}"
        )
    return points, [direction == "maximize" for direction in directions]
