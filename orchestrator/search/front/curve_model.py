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
from scipy.linalg import cho_solve, cholesky, solve_triangular
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
FITTED = 256
"""Points that the choice goes by, at most: with more it takes seconds, and is hardly another one."""
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
        known, others = np.flatnonzero(~np.isnan(values)), np.flatnonzero(np.isnan(values))
        if len(known) == 0:  # what is gained from here on is unknown
            variance += (0.5 * spread) ** 2
        elif len(others) > 0:
            earlier = None if rung == 0 else _Earlier(mean[others], variance[others], scores[known, rung - 1])
            mean[others], variance[others] = _rung(problem, known, values[known], others, spread, earlier)
        mean[known], variance[known] = values[known], 0.0
    return Prediction(mean, np.sqrt(variance))


def _spread(values: np.ndarray) -> float:
    """A robust standard deviation."""
    low, high = np.percentile(values, (25, 75))
    return max(float(high - low) / 1.35, 1e-4)


@dataclass(frozen=True)
class _Earlier:
    """The rung before, as to n points that are known at the rung after it, and m others."""

    mean: np.ndarray
    """Predicted of the others, or known, (m,)."""
    variance: np.ndarray
    of_known: np.ndarray
    """What the known ones scored, (n,)."""


def _rung(
    problem: FrontProblem,
    known: np.ndarray,
    values: np.ndarray,
    others: np.ndarray,
    spread: float,
    earlier: _Earlier | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance at a rung of the others, (m,) each, by the hyperparameters of largest marginal likelihood.

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
    some = _spread_out(problem.cost[known])
    kernel, noise = _most_likely(problem, known[some], residual[some], linear[np.ix_(some, some)], prior_variance)
    fit = _Fit.of(_correlation(problem, kernel, known, known) + linear, noise, residual, prior_variance)
    cross = _correlation(problem, kernel, others, known) + LEVEL_SD**2
    own = np.full(len(others), 1 + noise + LEVEL_SD**2)
    mean = np.full(len(others), values.mean())
    carried: np.ndarray | float = 0.0
    if earlier is not None:
        centred = earlier.mean - earlier.of_known.mean()
        cross = cross + rho_variance * np.outer(centred, slope)
        own = own + rho_variance * centred**2
        mean = mean + centred
        carried = (1 + rho_variance * float(slope @ fit.weights)) ** 2 * earlier.variance
    explained = (solve_triangular(fit.factor, cross.T, lower=True, check_finite=False) ** 2).sum(axis=0)
    return mean + cross @ fit.weights, fit.variance * np.maximum(own - explained, 1e-9) + carried


def _spread_out(cost: np.ndarray) -> np.ndarray:
    """Indices of points of all costs, `FITTED` at most, ascending."""
    order = np.argsort(cost, kind="stable")
    return np.sort(order[np.linspace(0, len(order) - 1, min(len(order), FITTED)).round().astype(int)])


def _most_likely(
    problem: FrontProblem, points: np.ndarray, residual: np.ndarray, linear: np.ndarray, prior_variance: float
) -> tuple[Kernel, float]:
    """The kernel, and the variance of the noise over that of the process, of largest marginal likelihood."""
    best: tuple[float, Kernel, float] | None = None
    for kernel in KERNELS:
        covariance = _correlation(problem, kernel, points, points) + linear
        for noise in NOISES:
            likelihood = _Fit.of(covariance, noise, residual, prior_variance).likelihood
            if best is None or likelihood > best[0]:
                best = likelihood, kernel, noise
    assert best is not None
    return best[1:]


@dataclass(frozen=True)
class _Fit:
    """A Gaussian process, given what n points scored."""

    factor: np.ndarray
    """Cholesky factor of the covariance with noise, lower, (n, n)."""
    weights: np.ndarray
    """Inverse covariance times residual, (n,)."""
    variance: float
    """Of the process."""
    likelihood: float
    """Logarithm of the marginal one, but for a constant."""

    @classmethod
    def of(cls, covariance: np.ndarray, noise: float, residual: np.ndarray, prior_variance: float) -> _Fit:
        factor = cholesky(covariance + noise * np.eye(len(residual)), lower=True, check_finite=False)
        weights = cho_solve((factor, True), residual, check_finite=False)
        count = PSEUDO_OBSERVATIONS + len(residual)
        variance = (PSEUDO_OBSERVATIONS * prior_variance + float(residual @ weights)) / count
        likelihood = -float(np.log(np.diag(factor)).sum()) - 0.5 * count * math.log(variance)
        return cls(factor, weights, variance, likelihood)


def _correlation(problem: FrontProblem, kernel: Kernel, points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Matérn correlation for nu = 5/2 (Rasmussen and Williams 2006, eq. 4.17), (points, others)."""
    features = np.hstack([kernel.structure * problem.structure, kernel.cost * problem.cost_features])
    scaled = math.sqrt(5) * (cdist(features[points], features[others]) / kernel.length)
    return np.asarray((1 + scaled + scaled**2 / 3) * np.exp(-scaled))
