"""Points of a space as numbers that distances can be taken of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def structure_of(points: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """The values of points, which all have the same names, (n, features), each between 0 and 1.

    Numbers count by their rank, other values one-hot; where some are None, having no effect there, a flag says so.
    """
    columns: list[np.ndarray] = []
    for name in points[0]:
        values = [point[name] for point in points]
        inactive = np.array([value is None for value in values])
        distinct = list(dict.fromkeys(value for value in values if value is not None))
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in distinct):
            rank = {value: place / max(1, len(distinct) - 1) for place, value in enumerate(sorted(distinct))}
            columns.append(np.array([rank.get(value, 0.0) for value in values]))
        else:
            columns += [np.array([value == choice for value in values]) for choice in distinct]
        if inactive.any():
            columns.append(inactive)
    return np.stack(columns, axis=1).astype(float)
