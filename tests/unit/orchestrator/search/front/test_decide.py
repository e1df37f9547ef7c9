"""What is trained next, by hand-made situations."""

from __future__ import annotations

import numpy as np
from made_up_curves import RUNGS, problem_of, scores_of

from orchestrator.search.front.decide import Opening, decide, front_reference, least_promising_first
from orchestrator.search.front.gain import Reference
from orchestrator.search.front.problem import Progress, default_rungs, no_scores

PROBLEM = problem_of()
SCORES = scores_of(PROBLEM)


def screened() -> np.ndarray:
    scores = no_scores(PROBLEM)
    for segment in decide(PROBLEM, Progress(scores), seed=0):
        scores[segment.point, 0] = SCORES[segment.point, 0]
    return scores


def anchored() -> np.ndarray:
    scores = screened()
    for segment in decide(PROBLEM, Progress(scores), seed=0):
        scores[segment.point] = SCORES[segment.point]
    return scores


def test_at_first_one_point_of_each_range_of_costs_begins() -> None:
    segments = decide(PROBLEM, Progress(no_scores(PROBLEM)), seed=0)
    assert {(segment.from_epoch, segment.to_epoch, segment.why) for segment in segments} == {(0, 1, "screen")}
    rank = np.argsort(np.argsort(PROBLEM.cost))
    assert len(segments) == 18
    ranks = sorted(rank[segment.point] for segment in segments)
    assert all(abs(found - (60 / 18) * (place + 0.5)) <= 60 / 18 for place, found in enumerate(ranks))
    assert segments != decide(PROBLEM, Progress(no_scores(PROBLEM)), seed=1)


def test_the_screen_is_waited_for() -> None:
    segments = decide(PROBLEM, Progress(no_scores(PROBLEM)), seed=0)
    pending = {segment.point: segment.to_epoch for segment in segments}
    assert decide(PROBLEM, Progress(no_scores(PROBLEM), pending), seed=0) == []
    scores = screened()
    scores[segments[0].point] = np.nan
    assert decide(PROBLEM, Progress(scores, {segments[0].point: 1}), seed=0) == []


def test_then_the_best_of_three_ranges_train_to_their_end() -> None:
    scores = screened()
    segments = decide(PROBLEM, Progress(scores), seed=0)
    assert [(segment.from_epoch, segment.to_epoch, segment.why) for segment in segments] == [(1, 27, "anchor")] * 3
    known = np.flatnonzero(~np.isnan(scores[:, 0]))
    thirds = np.array_split(known[np.argsort(PROBLEM.cost[known])], 3)
    assert [segment.point for segment in segments] == [third[np.argmax(scores[third, 0])] for third in thirds]


def test_then_one_at_a_time_by_what_it_may_gain() -> None:
    [segment] = decide(PROBLEM, Progress(anchored()), seed=0)
    assert segment.why == "gain"
    assert segment.to_epoch in RUNGS
    assert segment.from_epoch == ([0, *RUNGS])[RUNGS.index(segment.to_epoch)]
    assert segment.gain is not None
    assert segment.gain > 0
    assert segment.sd is not None


def test_what_it_begins_with_is_known_beforehand() -> None:
    for problem in (PROBLEM, problem_of(10), problem_of(rungs=(5,))):
        whole, scores, spent = scores_of(problem), no_scores(problem), 0
        for _ in problem.rungs[:2]:
            for segment in decide(problem, Progress(scores), seed=0):
                level = problem.level(segment.to_epoch)
                scores[segment.point, :level] = whole[segment.point, :level]
                spent += segment.epochs
        assert Opening.of(len(problem), problem.rungs).epochs == spent


def test_a_late_first_rung_is_for_fewer_points() -> None:
    early, late = Opening.of(639, (2, 6, 20, 60)), Opening.of(639, (20, 60))
    assert early.screened == round(0.3 * 639)
    assert late.screened < early.screened
    assert late.screen_epochs <= 0.041 * 639 * 60
    assert Opening.of(639, (60,)).screen_epochs <= 0.041 * 639 * 60


def test_pending_points_are_not_taken_twice() -> None:
    scores, pending = anchored(), {}
    for _ in range(20):
        [segment] = decide(PROBLEM, Progress(scores, pending), seed=0)
        assert segment.point not in pending
        pending[segment.point] = segment.to_epoch


def test_points_that_failed_are_left_out() -> None:
    scores = anchored()
    [first] = decide(PROBLEM, Progress(scores), seed=0)
    [second] = decide(PROBLEM, Progress(scores, failed={first.point}), seed=0)
    assert first.point != second.point
    everything = set(np.flatnonzero(np.isnan(scores[:, -1])).tolist())
    assert decide(PROBLEM, Progress(scores, failed=everything), seed=0) == []


def test_where_all_of_the_screen_failed_it_is_repeated_with_others() -> None:
    failed = {segment.point for segment in decide(PROBLEM, Progress(no_scores(PROBLEM)), seed=0)}
    again = decide(PROBLEM, Progress(no_scores(PROBLEM), failed=failed), seed=0)
    assert again
    assert not failed & {segment.point for segment in again}
    assert decide(PROBLEM, Progress(no_scores(PROBLEM), failed=range(60)), seed=0) == []


def test_a_whole_space_is_used_up() -> None:
    scores = anchored()
    trained = 0
    while segments := decide(PROBLEM, Progress(scores), seed=0):
        for segment in segments:
            scores[segment.point, PROBLEM.level(segment.to_epoch) - 1] = SCORES[
                segment.point, PROBLEM.level(segment.to_epoch) - 1
            ]
            trained += segment.epochs
    assert not np.isnan(scores).any()
    assert trained == 60 * 27 - 3 * 27 - 15


def test_without_rungs_each_trains_to_its_end() -> None:
    problem = problem_of(rungs=(5,))
    whole, scores = scores_of(problem), no_scores(problem)
    first = decide(problem, Progress(scores), seed=0)
    assert [segment.to_epoch for segment in first] == [5] * 5
    for segment in first:
        scores[segment.point] = whole[segment.point]
    [segment] = decide(problem, Progress(scores), seed=0)
    assert (segment.from_epoch, segment.to_epoch, segment.why) == (0, 5, "gain")


def test_rungs_are_thirds_behind_the_warm_up() -> None:
    assert default_rungs(27, warmup=0) == (1, 3, 9, 27)
    assert default_rungs(100, warmup=5) == (11, 33, 100)
    assert default_rungs(27, warmup=1.5) == (3, 9, 27)
    assert default_rungs(8, warmup=0) == (8,)
    assert default_rungs(64, warmup=0, factor=4) == (1, 4, 16, 64)
    assert default_rungs(20, warmup=20) == (20,)


def test_the_most_promising_is_what_would_be_trained_next() -> None:
    scores = anchored()
    order = least_promising_first(PROBLEM, Progress(scores), range(len(PROBLEM)))
    assert len(order) == len(PROBLEM) - 3, "what is at its end waits for nothing"
    [following] = decide(PROBLEM, Progress(scores), seed=0)
    assert order[-1] == following.point
    [second] = decide(PROBLEM, Progress(scores, failed={following.point}), seed=0)
    without = least_promising_first(PROBLEM, Progress(scores, failed={following.point}), range(len(PROBLEM)))
    assert without[-1] == second.point
    some = order[::7]
    assert least_promising_first(PROBLEM, Progress(scores), sorted(some)) == some


def test_a_costly_point_that_may_be_the_best_is_worth_a_try() -> None:
    cheap, costly = int(np.argmin(PROBLEM.cost)), int(np.argmax(PROBLEM.cost))
    cost, mean, sd = PROBLEM.cost, np.full(len(PROBLEM), 0.3), np.full(len(PROBLEM), 0.01)
    mean[cheap], mean[costly], sd[costly] = 0.6, 0.58, 0.1
    assert Reference.behind(cost, mean).cost == cost[cheap]
    reference = front_reference(cost, mean, sd)
    assert reference.cost > cost[costly]
    assert reference.score == Reference.behind(cost, mean).score
