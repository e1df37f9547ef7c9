"""Final scores predicted from learning curves: Gaussian processes chained over rungs.

What a point scores at rung k is a line through what it scored at the rung before, plus a Gaussian process over what is
known of points before any training, plus noise:

    V_k(x) = a_k + rho_k V_{k-1}(x) + g_k(x) + e_k        (the first rung has no rho)

This is the autoregressive model of Kennedy and O'Hagan (2000), with a prior on each part, so that every rung has a
closed form: given its hyperparameters, V_k is a Gaussian process with the covariance of all the parts together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import cho_solve, cholesky
from scipy.spatial.distance import cdist

from orchestrator.search.front.problem import FrontProblem


class Kernel(NamedTuple):
    """A Matérn kernel, and what counts how much for the distance between two points."""

    structure: float
    """Weight of the searched values."""
    cost: float
    """Weight of what a network costs."""
    length: float


WEIGHTS = ((1.0, 0.0), (1.0, 0.5), (0.0, 0.5))
"""Of structure and cost: where what is searched says little, it should not blur what the size of a network says."""
KERNELS = tuple(Kernel(*weights, length) for weights in WEIGHTS for length in (0.5, 1.0, 2.0, 4.0))
"""Of which marginal likelihood chooses."""
NOISES = (0.03, 0.1, 0.3, 1.0, 3.0)
"""Variances of the noise over that of the process, chosen likewise."""
PSEUDO_OBSERVATIONS = 3.0
"""What the prior of a rung's variance weighs: with few points at a rung the chain is overconfident without it."""
RHO_SD = 0.5
"""Standard deviation of the prior of rho, whose mean is 1."""
LEVEL_SD = 10.0
"""That of the prior of a, over that of the process: as good as flat."""


@dataclass(frozen=True)
class Prediction:
    """Independent normal distributions, one for each of n points."""

    mean: np.ndarray
    """(n,)"""
    sd: np.ndarray
    """Standard deviation, (n,); 0 where the score is known."""


def predict_final(problem: FrontProblem, scores: np.ndarray) -> Prediction:
    """What every point will score at the last rung.

    Args:
        problem: Of n points.
        scores: At each rung, (n, rungs); NaN where a point has not got there. At least one point has got to the first.
    """
    spread = _spread(scores[~np.isnan(scores[:, 0]), 0])
    mean, variance = np.zeros(len(scores)), np.zeros(len(scores))
    for rung, values in enumerate(scores.T):
        known = np.flatnonzero(~np.isnan(values))
        if len(known) == 0:  # what is gained from here on is unknown
            variance = variance + (0.5 * spread) ** 2
            continue
        prior = None if rung == 0 else _Earlier(mean, variance, scores[known, rung - 1])
        mean, variance = _rung(problem, known, values[known], spread, prior)
        mean[known], variance[known] = values[known], 0.0
    return Prediction(mean, np.sqrt(variance))


def _spread(values: np.ndarray) -> float:
    """A robust standard deviation."""
    low, high = np.percentile(values, (25, 75))
    return max(float(high - low) / 1.35, 1e-4)


@dataclass(frozen=True)
class _Earlier:
    """The rung before."""

    mean: np.ndarray
    """Predicted there, (n,)."""
    variance: np.ndarray
    of_known: np.ndarray
    """What those scored there that are known at the rung after it."""


def _rung(
    problem: FrontProblem, known: np.ndarray, values: np.ndarray, spread: float, earlier: _Earlier | None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of all points at a rung, by the hyperparameters of largest marginal likelihood.

    All covariances are over the variance of the process, which is profiled out under its prior.
    """
    prior_variance = 0.25 * spread**2
    residual = values - values.mean()
    linear = np.full((len(known), len(known)), LEVEL_SD**2)
    rho_variance, slope = 0.0, np.zeros(len(known))
    if earlier is not None:
        slope = earlier.of_known - earlier.of_known.mean()
        residual = residual - slope  # rho is 1 if nothing speaks against it
        rho_variance = RHO_SD**2 / prior_variance
        linear += rho_variance * np.outer(slope, slope)
    best: tuple[float, float, float, Kernel, np.ndarray, np.ndarray] | None = None
    for kernel in KERNELS:
        covariance = _correlation(problem, kernel, known, known) + linear
        for noise in NOISES:
            factor = cholesky(covariance + noise * np.eye(len(known)), lower=True, check_finite=False)
            weights = cho_solve((factor, True), residual, check_finite=False)
            count = PSEUDO_OBSERVATIONS + len(known)
            variance = (PSEUDO_OBSERVATIONS * prior_variance + float(residual @ weights)) / count
            likelihood = -float(np.log(np.diag(factor)).sum()) - 0.5 * count * np.log(variance)
            if best is None or likelihood > best[0]:
                best = likelihood, noise, variance, kernel, factor, weights
    assert best is not None
    _, noise, variance, kernel, factor, weights = best
    cross = _correlation(problem, kernel, np.arange(len(problem)), known) + LEVEL_SD**2
    own = np.full(len(problem), 1 + noise + LEVEL_SD**2)
    mean = np.full(len(problem), values.mean())
    carried: np.ndarray | float = 0.0
    if earlier is not None:
        centred = earlier.mean - earlier.of_known.mean()
        cross = cross + rho_variance * np.outer(centred, slope)
        own = own + rho_variance * centred**2
        mean = mean + centred
        carried = (1 + rho_variance * float(slope @ weights)) ** 2 * earlier.variance
    mean = mean + cross @ weights
    explained = np.einsum("ij,ji->i", cross, cho_solve((factor, True), cross.T, check_finite=False))
    return mean, variance * np.maximum(own - explained, 1e-9) + carried


def _correlation(problem: FrontProblem, kernel: Kernel, points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Matérn correlation for nu = 5/2 (Rasmussen and Williams 2006, eq. 4.17), (points, others)."""
    features = np.hstack([kernel.structure * problem.structure, kernel.cost * problem.cost_features])
    scaled = math.sqrt(5) * (cdist(features[points], features[others]) / kernel.length)
    return np.asarray((1 + scaled + scaled**2 / 3) * np.exp(-scaled))
