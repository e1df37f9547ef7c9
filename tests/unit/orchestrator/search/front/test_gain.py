"""Hypervolumes and their expected gain: against moocore, and against integrals."""

from __future__ import annotations

import moocore
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from orchestrator.search.front.gain import Reference, Staircase, front_of

RNG = np.random.default_rng(0)
COST, SCORE = RNG.uniform(1, 5, 40), RNG.uniform(0.2, 0.9, 40)
REFERENCE = Reference(4.5, 0.3)


def hypervolume(cost: np.ndarray, score: np.ndarray) -> float:
    return float(moocore.hypervolume(np.stack([cost, -score], axis=1), ref=[REFERENCE.cost, -REFERENCE.score]))


def test_front_has_those_that_none_beats() -> None:
    front = front_of(np.array([3.0, 1.0, 2.0, 2.0, 1.0]), np.array([0.9, 0.5, 0.4, 0.7, 0.5]))
    assert front.tolist() == [1, 4, 3, 0]


def test_reference_lies_a_tenth_of_the_fronts_range_behind_it() -> None:
    reference = Reference.behind(np.array([1.0, 3.0, 9.0]), np.array([0.5, 0.7, 0.1]))
    assert (reference.cost, reference.score) == (pytest.approx(3.2), pytest.approx(0.48))


@pytest.mark.parametrize("points", [0, 1, 2, 5, 40])
def test_hypervolume_is_that_of_moocore(points: int) -> None:
    cost, score = COST[:points], SCORE[:points]
    expected = hypervolume(cost, score) if points else 0.0
    assert Staircase.under(cost, score, REFERENCE).hypervolume == pytest.approx(expected)


def test_gain_of_known_points_is_what_they_add() -> None:
    stairs = Staircase.under(COST[:10], SCORE[:10], REFERENCE)
    gain = stairs.expected_gain(COST[10:], SCORE[10:], np.zeros(30))
    before = hypervolume(COST[:10], SCORE[:10])
    added = [
        hypervolume(np.append(COST[:10], c), np.append(SCORE[:10], s)) - before
        for c, s in zip(COST[10:], SCORE[10:], strict=True)
    ]
    assert gain == pytest.approx(added, abs=1e-9)
    assert max(added) > 0.05


@pytest.mark.parametrize(("cost", "mean", "sd"), [(1.2, 0.6, 0.1), (2.0, 0.2, 0.3), (4.4, 0.95, 0.05), (5.0, 0.9, 0.1)])
def test_gain_of_unknown_points_is_its_expectation(cost: float, mean: float, sd: float) -> None:
    stairs = Staircase.under(COST[:10], SCORE[:10], REFERENCE)
    before = hypervolume(COST[:10], SCORE[:10])

    def added(score: float) -> float:
        return hypervolume(np.append(COST[:10], cost), np.append(SCORE[:10], score)) - before

    points = sorted({*SCORE[:10], REFERENCE.score})
    expected, _ = quad(
        lambda s: added(s) * norm.pdf(s, mean, sd), mean - 8 * sd, mean + 8 * sd, points=points, limit=500
    )
    gain = stairs.expected_gain(np.array([cost]), np.array([mean]), np.array([sd]))
    assert gain == pytest.approx([expected], rel=1e-5, abs=1e-12)
