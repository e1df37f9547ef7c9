"""A made-up space whose curves cross: what its points score, by a formula."""

from __future__ import annotations

import numpy as np

from orchestrator.search.front.problem import FrontProblem, unit_spread

RUNGS = (1, 3, 9, 27)


def problem_of(n: int = 60, *, seed: int = 0, rungs: tuple[int, ...] = RUNGS) -> FrontProblem:
    rng = np.random.default_rng(seed)
    structure = rng.uniform(size=(n, 3))
    cost = 1 + 3 * structure[:, 0] + structure[:, 1]
    return FrontProblem(cost, structure, unit_spread([cost]), rungs)


def scores_of(problem: FrontProblem, *, seed: int = 0, noise: float = 0.005) -> np.ndarray:
    """At each rung, (n, rungs): the costlier learn more, but not as fast."""
    rng = np.random.default_rng(seed)
    best = 0.5 + 0.3 * np.sqrt(problem.cost / problem.cost.max()) - 0.2 * (problem.structure[:, 2] - 0.6) ** 2
    speed = 3 * problem.cost / problem.cost.mean()
    epochs = np.array(problem.rungs)
    return best[:, None] * (1 - np.exp(-epochs / speed[:, None])) + noise * rng.normal(size=(len(problem), len(epochs)))
