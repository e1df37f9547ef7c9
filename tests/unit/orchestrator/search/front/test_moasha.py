"""Successive halving by fronts: who goes on."""

from __future__ import annotations

import numpy as np
from made_up_curves import problem_of, scores_of

from orchestrator.search.front.moasha import best_spread, decide_by_rank
from orchestrator.search.front.problem import Progress, no_scores

PROBLEM = problem_of(20)
SCORES = scores_of(PROBLEM)


def test_fronts_come_one_after_another_and_each_is_spread() -> None:
    cost = np.array([1.0, 2.0, 3.0, 3.0, 1.1])
    score = np.array([0.1, 0.6, 0.9, 0.5, 0.12])
    assert best_spread(cost, score).tolist() == [2, 0, 1, 4, 3]
    assert best_spread(cost[:0], score[:0]).tolist() == []


def test_it_begins_with_points_at_random() -> None:
    [one], [other] = (decide_by_rank(PROBLEM, Progress(no_scores(PROBLEM)), seed=seed) for seed in (0, 1))
    assert (one.from_epoch, one.to_epoch) == (0, 1)
    assert one.point != other.point


def test_one_in_eta_goes_on_and_it_is_of_the_front() -> None:
    scores = no_scores(PROBLEM)
    scores[:8, 0] = SCORES[:8, 0]
    best = best_spread(PROBLEM.cost[:8], SCORES[:8, 0])
    [first] = decide_by_rank(PROBLEM, Progress(scores), seed=0, eta=4)
    assert (first.point, first.from_epoch, first.to_epoch) == (best[0], 1, 3)
    [second] = decide_by_rank(PROBLEM, Progress(scores, {first.point: 3}), seed=0, eta=4)
    assert second.point == best[1]
    [third] = decide_by_rank(PROBLEM, Progress(scores, {first.point: 3, second.point: 3}), seed=0, eta=4)
    assert third.from_epoch == 0
    scores[best[0], 1] = SCORES[best[0], 1]
    [fourth] = decide_by_rank(PROBLEM, Progress(scores, {second.point: 3}), seed=0, eta=4)
    assert fourth.from_epoch == 0, "one at the next rung is not enough for one in four"


def test_a_later_run_moves_a_waiting_one_up() -> None:
    scores = no_scores(PROBLEM)
    scores[:3, 0] = SCORES[:3, 0]
    assert decide_by_rank(PROBLEM, Progress(scores), seed=0, eta=4)[0].from_epoch == 0
    scores[3, 0] = SCORES[3, 0] - 1
    [promoted] = decide_by_rank(PROBLEM, Progress(scores), seed=0, eta=4)
    assert promoted.from_epoch == 1
    assert promoted.point in range(3)


def test_points_that_failed_are_left_out() -> None:
    assert decide_by_rank(PROBLEM, Progress(no_scores(PROBLEM), failed=range(20)), seed=0) == []
