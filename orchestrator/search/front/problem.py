"""What a search for a front knows before it trains anything, and what it can ask for.

What a network costs to use is known of every point of a finite space. What it scores is learned epoch by epoch, and
training can pause at any rung and go on later. `decide` says what to train next. Only the sampler knows Optuna.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class FrontProblem:
    """A finite space of n points with two objectives: a cost, known of each, to keep low, and a score to train for.

    Raises:
        ValueError: The arrays do not fit together, a cost is not finite and positive, or the rungs do not ascend.
    """

    cost: np.ndarray
    """Latency, say, of each point, (n,)."""
    structure: np.ndarray
    """The searched values, each between 0 and 1, (n, features)."""
    cost_features: np.ndarray
    """Latency, parameters and so on, each on a scale of unit spread, (n, cost features)."""
    rungs: tuple[int, ...]
    """Epochs after which a training run may pause, ascending; the last one is its end."""

    def __post_init__(self) -> None:
        n = len(self.cost)
        if self.cost.shape != (n,) or not (np.isfinite(self.cost) & (self.cost > 0)).all():
            raise ValueError(f"cost must be (n,), finite and positive, but got {self.cost!r}")
        for name, features in (("structure", self.structure), ("cost_features", self.cost_features)):
            if features.ndim != 2 or len(features) != n or not np.isfinite(features).all():
                raise ValueError(f"{name} must be ({n}, features) and finite, but has the shape {features.shape}")
        if not self.rungs or any(low >= high for low, high in zip((0, *self.rungs), self.rungs, strict=False)):
            raise ValueError(f"rungs must ascend from 1, but got {self.rungs}")

    def __len__(self) -> int:
        return len(self.cost)

    @property
    def epochs(self) -> int:
        """What a run to the end takes."""
        return self.rungs[-1]

    def epochs_at(self, level: np.ndarray) -> np.ndarray:
        """How many epochs runs have behind them that have so many rungs."""
        return np.array([0, *self.rungs])[level]

    def level(self, epochs: int) -> int:
        """How many rungs a run with so many epochs has behind it."""
        return sum(rung <= epochs for rung in self.rungs)


@dataclass(frozen=True)
class Segment:
    """A part of a training run that was decided on."""

    point: int
    from_epoch: int
    to_epoch: int
    why: Literal["asked", "screen", "anchor", "gain", "rank"]
    """As somebody asked for it; to see a part of every range of costs; to see whole curves; for the expected gain of
    the front; or, of another strategy, for its rank among those that got as far."""
    mean: float | None = None
    """What the point was expected to score in the end; None before there was anything to expect it from."""
    sd: float | None = None
    """Standard deviation of that."""
    gain: float | None = None
    """Expected gain, over the hypervolume of the front as it was."""

    @property
    def epochs(self) -> int:
        """What it costs."""
        return self.to_epoch - self.from_epoch


@dataclass(frozen=True)
class Progress:
    """How far a search has got: all that a decision is made by, besides the problem."""

    scores: np.ndarray
    """At each rung, the higher the better, (n, rungs); NaN where a point has not got there."""
    pending: Mapping[int, int] = field(default_factory=dict)
    """The epoch to which each point is being trained that is."""
    failed: Collection[int] = ()
    """Points that cannot be trained."""
    asked: Collection[int] = ()
    """Points that somebody asked for: trained to their end whatever they promise, so that they stand for no others."""

    @property
    def level(self) -> np.ndarray:
        """How many rungs each point has behind it, (n,)."""
        return np.asarray((~np.isnan(self.scores)).sum(axis=1))

    @property
    def usable(self) -> np.ndarray:
        """Which points have not failed, (n,)."""
        return ~self._among(self.failed)

    @property
    def chosen(self) -> np.ndarray:
        """Which of them nobody asked for, (n,)."""
        return self.usable & ~self._among(self.asked)

    def _among(self, points: Collection[int]) -> np.ndarray:
        return np.isin(np.arange(len(self.scores)), list(points))


def default_rungs(epochs: int, *, warmup: float, factor: int = 3, fewest_epochs: int = 9) -> tuple[int, ...]:
    """A third of the epochs, a third of that, and so on, as long as the warm-up is over by then.

    Runs of less than `fewest_epochs` have no rung but their end: so short, they tell little before.
    """
    rungs = [epochs]
    while epochs >= fewest_epochs:
        rung = round(epochs / factor ** len(rungs))
        if rung < max(1, math.ceil(warmup)):
            break
        rungs.append(rung)
    return tuple(sorted(set(rungs)))


def no_scores(problem: FrontProblem) -> np.ndarray:
    """Scores at each rung, (n, rungs), before anything was trained."""
    return np.full((len(problem), len(problem.rungs)), np.nan)


def unit_spread(columns: Sequence[np.ndarray]) -> np.ndarray:
    """Positive columns, (n,) each, as features: logarithms without mean, of unit standard deviation, (n, columns)."""
    if not columns:
        return np.empty((0, 0))
    logs = np.log(np.stack(columns, axis=1))
    return np.asarray((logs - logs.mean(axis=0)) / np.maximum(logs.std(axis=0), 1e-12))
