"""Expected gain of a front's hypervolume by points whose cost is known: a closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import moocore
import numpy as np
from scipy.special import ndtr

BEYOND = 0.1
"""How far the reference point lies behind the worst of a front, over the front's range."""


def front_of(cost: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Indices of the points that none beats in both, of equal ones each, by ascending cost."""
    front = np.flatnonzero(moocore.is_nondominated(np.stack([cost, -score], axis=1), keep_weakly=True))
    return front[np.argsort(cost[front], kind="stable")]


@dataclass(frozen=True)
class Reference:
    """The corner against which hypervolumes are measured."""

    cost: float
    score: float

    @classmethod
    def behind(cls, cost: np.ndarray, score: np.ndarray) -> Reference:
        """That of the points' front: its nadir, a tenth of its range worse."""
        front = front_of(cost, score)
        return cls(
            float(cost[front].max() + BEYOND * np.ptp(cost[front])),
            float(score[front].min() - BEYOND * np.ptp(score[front])),
        )


@dataclass(frozen=True)
class Staircase:
    """The best score that is to be had for a cost, as steps."""

    heights: np.ndarray
    """Of each step, (steps,), ascending from the reference's score."""
    edges: np.ndarray
    """Costs at which they begin, and the reference's, (steps + 1,)."""

    @classmethod
    def under(cls, cost: np.ndarray, score: np.ndarray, reference: Reference) -> Staircase:
        """That of the points inside the reference, of which there may be none."""
        inside = (cost < reference.cost) & (score > reference.score)
        cost, score = cost[inside], score[inside]
        front = front_of(cost, score) if len(cost) else np.array([], dtype=int)
        return cls(
            np.concatenate([[reference.score], score[front]]),
            np.concatenate([[0.0], cost[front], [reference.cost]]),
        )

    @property
    def hypervolume(self) -> float:
        """The area between the steps and the reference."""
        return float(np.diff(self.edges) @ (self.heights - self.heights[0]))

    def expected_gain(self, cost: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
        """What hypervolume each point would add by itself, (n,), its score being normally distributed.

        A sum over the steps to the right of its cost: the width of each, times the expected improvement over its
        height (Jones, Schonlau and Welch 1998, eq. 15).
        """
        width = np.maximum(self.edges[1:] - np.maximum(cost[:, None], self.edges[:-1]), 0.0)
        sd = np.maximum(sd, 1e-12)[:, None]
        z = (mean[:, None] - self.heights) / sd
        density = np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
        return np.asarray((width * sd * (z * ndtr(z) + density)).sum(axis=1))
