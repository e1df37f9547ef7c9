"""Predictions from learning curves: against dense Gaussian algebra, and what they must not do."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from made_up_curves import problem_of, scores_of
from sklearn.gaussian_process.kernels import Matern

from orchestrator.search.front import curve_model
from orchestrator.search.front.curve_model import KERNELS, LEVEL_SD, NOISES, PSEUDO_OBSERVATIONS, predict_final
from orchestrator.search.front.problem import no_scores

PROBLEM = problem_of()
SCORES = scores_of(PROBLEM)


def test_one_rung_is_a_gaussian_process() -> None:
    problem = problem_of(rungs=(27,))
    known, values = np.arange(0, 60, 4), scores_of(problem)[::4, 0]
    scores = no_scores(problem)
    scores[known, 0] = values
    found = predict_final(problem, scores)

    spread = np.subtract(*np.percentile(values, (75, 25))) / 1.35
    prior = 0.25 * spread**2
    candidates = []
    for kernel, noise in product(KERNELS, NOISES):
        features = np.hstack([kernel.structure * problem.structure, kernel.cost * problem.cost_features])
        covariance = Matern(kernel.length, nu=2.5)(features) + LEVEL_SD**2 + noise * np.eye(60)
        inverse = np.linalg.inv(covariance[np.ix_(known, known)])
        residual = values - values.mean()
        scale = (PSEUDO_OBSERVATIONS * prior + residual @ inverse @ residual) / (PSEUDO_OBSERVATIONS + len(known))
        _, determinant = np.linalg.slogdet(covariance[np.ix_(known, known)])
        likelihood = -0.5 * determinant - 0.5 * (PSEUDO_OBSERVATIONS + len(known)) * np.log(scale)
        mean = values.mean() + covariance[:, known] @ inverse @ residual
        variance = scale * (
            np.diag(covariance) - np.einsum("ij,jk,ik->i", covariance[:, known], inverse, covariance[:, known])
        )
        candidates.append((likelihood, mean, np.sqrt(np.maximum(variance, 1e-12))))
    _, mean, sd = max(candidates, key=lambda candidate: candidate[0])
    unknown = np.setdiff1d(np.arange(60), known)
    assert found.mean[unknown] == pytest.approx(mean[unknown])
    assert found.sd[unknown] == pytest.approx(sd[unknown])


def test_many_known_points_are_all_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hyperparameters go by some of them, predictions by all."""
    problem = problem_of(400)
    scores, whole = no_scores(problem), scores_of(problem)
    scores[:380, 0], scores[:300, 1] = whole[:380, 0], whole[:300, 1]
    found = predict_final(problem, scores)
    monkeypatch.setattr(curve_model, "FITTED", 400)
    by_all = predict_final(problem, scores)
    monkeypatch.setattr(curve_model, "FITTED", 30)
    by_few = predict_final(problem, scores)
    assert np.abs(found.mean - by_all.mean).max() < 0.2 * by_all.sd.min()
    assert np.abs(by_few.mean - by_all.mean).max() < by_all.sd.min(), "some that are known count for nothing"


def test_what_is_known_is_predicted_without_doubt() -> None:
    scores = no_scores(PROBLEM)
    scores[:20, 0] = SCORES[:20, 0]
    scores[:6] = SCORES[:6]
    found = predict_final(PROBLEM, scores)
    assert (found.mean[:6] == SCORES[:6, -1]).all()
    assert (found.sd[:6] == 0).all()
    assert (found.sd[6:] > 0).all()


def test_curves_narrow_the_prediction_down() -> None:
    errors, sds = [], []
    for level in range(1, 4):
        scores = no_scores(PROBLEM)
        scores[:30] = SCORES[:30]
        scores[30:, :level] = SCORES[30:, :level]
        found = predict_final(PROBLEM, scores)
        errors.append(float(np.abs(found.mean - SCORES[:, -1])[30:].mean()))
        sds.append(float(found.sd[30:].mean()))
    assert errors == sorted(errors, reverse=True)
    assert sds == sorted(sds, reverse=True)
    assert errors[-1] < 0.3 * float(np.std(SCORES[30:, -1]))


def test_standard_deviations_are_what_errors_are() -> None:
    apart = []
    for seed in range(8):
        problem = problem_of(seed=seed)
        whole, scores = scores_of(problem, seed=seed), no_scores(problem)
        scores[:30, 0] = whole[:30, 0]
        scores[:8] = whole[:8]
        found = predict_final(problem, scores)
        apart.append((found.mean - whole[:, -1])[8:] / found.sd[8:])
    assert 0.4 < float(np.std(np.concatenate(apart))) < 1.6


def test_order_of_the_points_does_not_matter() -> None:
    scores = no_scores(PROBLEM)
    scores[:20, 0] = SCORES[:20, 0]
    scores[:6] = SCORES[:6]
    order = np.random.default_rng(1).permutation(60)
    turned = type(PROBLEM)(PROBLEM.cost[order], PROBLEM.structure[order], PROBLEM.cost_features[order], PROBLEM.rungs)
    one, other = predict_final(PROBLEM, scores), predict_final(turned, scores[order])
    assert other.mean == pytest.approx(one.mean[order])
    assert other.sd == pytest.approx(one.sd[order])


def test_scale_of_the_scores_does_not_matter() -> None:
    scores = no_scores(PROBLEM)
    scores[:20, 0] = SCORES[:20, 0]
    scores[:6] = SCORES[:6]
    one, other = predict_final(PROBLEM, scores), predict_final(PROBLEM, 100 * scores + 7)
    assert other.mean == pytest.approx(100 * one.mean + 7, rel=1e-3)
    assert other.sd == pytest.approx(100 * one.sd, rel=1e-2)


def test_equal_scores_are_no_trouble() -> None:
    scores = no_scores(PROBLEM)
    scores[:20, 0] = 0.1
    found = predict_final(PROBLEM, scores)
    assert np.isfinite(found.mean).all()
    assert np.isfinite(found.sd).all()
