"""Decisions do not depend on which of two runs happens to end first."""

from __future__ import annotations

import heapq
import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest
from made_up_curves import problem_of, scores_of

from orchestrator.search.front.decide import decide
from orchestrator.search.front.moasha import decide_by_rank
from orchestrator.search.front.planner import PATIENCE, Decision, Planner, Strategy

PROBLEM = problem_of(30)
SCORES = scores_of(PROBLEM)


def planner_of(strategy: Strategy = decide, workers: int = 3, **options: Any) -> Planner:
    return Planner(PROBLEM, partial(strategy, seed=0), workers=workers, epoch_cost=PROBLEM.cost, **options)


def tell(planner: Planner, point: int, from_epoch: int, to_epoch: int) -> None:
    for level, rung in enumerate(PROBLEM.rungs):
        if from_epoch < rung <= to_epoch:
            planner.tell(point, rung, float(SCORES[point, level]))


def run(planner: Planner, *, speed_seed: int, workers: int = 3, failing: int | None = None) -> list[Decision]:
    """To its end, by workers whose speed is all chance; one point fails."""
    rng, now = np.random.default_rng(speed_seed), 0.0
    waiting: list[tuple[int, int, int]] = []
    training: list[tuple[float, int, int, int]] = []
    for decision in planner.decisions:
        waiting += [(s.point, s.from_epoch, s.to_epoch) for s in decision.segments]
    while True:
        while len(training) < workers:
            if not waiting and (decision := planner.next()) is not None:
                waiting += [(s.point, s.from_epoch, s.to_epoch) for s in decision.segments]
            if not waiting:
                break
            heapq.heappush(training, (now + rng.exponential(), *waiting.pop(0)))
        if not training:
            return planner.decisions
        now, point, from_epoch, to_epoch = heapq.heappop(training)
        if point == failing:
            planner.tell(point, to_epoch, None)
        else:
            tell(planner, point, from_epoch, to_epoch)


@pytest.mark.parametrize("strategy", [decide, decide_by_rank])
@pytest.mark.parametrize("workers", [1, 3, 8])
def test_decisions_are_the_same_whatever_ends_first(strategy: Strategy, workers: int) -> None:
    one = run(planner_of(strategy, workers, max_epochs=300), speed_seed=0, workers=workers)
    other = run(planner_of(strategy, workers, max_epochs=300), speed_seed=1, workers=workers)
    assert one == other
    assert len(one) > 10


def test_decisions_go_on_after_a_break_anywhere() -> None:
    whole = run(planner_of(max_epochs=200), speed_seed=0)
    for kept in (0, 1, 2, 3, len(whole) // 2, len(whole) - 1):
        planner = planner_of(max_epochs=200)
        for decision in whole[:kept]:
            planner.adopt(decision)
        assert run(planner, speed_seed=2) == whole


def test_a_larger_budget_goes_on_where_the_smaller_one_ended() -> None:
    small, large = run(planner_of(max_epochs=150), speed_seed=0), run(planner_of(max_epochs=250), speed_seed=1)
    assert large[: len(small)] == small
    assert len(large) > len(small)
    planner = planner_of(max_epochs=250)
    for decision in small:
        planner.adopt(decision)
    assert run(planner, speed_seed=3) == large


def test_no_decision_goes_beyond_the_budget() -> None:
    for budget in (20, 110, 111, 180):
        planner = planner_of(max_epochs=budget)
        run(planner, speed_seed=0)
        assert planner.epochs <= budget
        assert planner.ended


def test_it_ends_when_little_is_to_be_gained() -> None:
    thorough, hasty = planner_of(min_gain=0.0), planner_of(min_gain=0.01)
    run(thorough, speed_seed=0)
    run(hasty, speed_seed=0)
    assert thorough.epochs == 30 * 27
    assert hasty.epochs < thorough.epochs / 2 + PATIENCE * 27
    assert hasty.ended


def test_it_ends_only_after_two_trainings_of_little_gain() -> None:
    planner = planner_of(min_gain=0.01)
    decisions = run(planner, speed_seed=0)
    gains = [(decision.segments[0].gain, decision.segments[0].epochs) for decision in decisions]
    in_vain = list(itertools.takewhile(lambda gain: gain[0] is not None and gain[0] < 0.01, reversed(gains)))
    assert sum(epochs for _, epochs in in_vain) >= PATIENCE * 27
    assert sum(epochs for _, epochs in in_vain[:-1]) < (PATIENCE + 1) * 27
    again = planner_of(min_gain=0.01)
    for decision in decisions:
        again.adopt(decision)
    assert run(again, speed_seed=1) == decisions


def test_a_failed_point_is_not_trained_on() -> None:
    screen = planner_of().next()
    assert screen is not None
    bad = screen.segments[0].point
    planner = planner_of()
    first, *others = run(planner, speed_seed=0, failing=bad)
    assert first == screen
    assert bad not in [segment.point for decision in others for segment in decision.segments]
    assert planner.epochs == 29 * 27 + 1


def test_asked_points_come_first_and_take_no_part_in_the_screen() -> None:
    planner = planner_of(max_epochs=200, asked=(3, 7))
    asked, screen, anchors, *_ = run(planner, speed_seed=0)
    assert [(segment.point, segment.to_epoch, segment.why) for segment in asked.segments] == [
        (3, 27, "asked"),
        (7, 27, "asked"),
    ]
    assert {segment.why for segment in screen.segments} == {"screen"}
    assert not {3, 7} & {segment.point for segment in screen.segments}
    assert [segment.why for segment in anchors.segments] == ["anchor"] * 3
    assert planner.decisions == run(planner_of(max_epochs=200, asked=(3, 7)), speed_seed=1)


def test_points_asked_for_later_train_to_their_end_whatever_the_budget() -> None:
    small = run(planner_of(max_epochs=150), speed_seed=0)
    begun = {segment.point: segment.to_epoch for decision in small for segment in decision.segments}
    paused = next(point for point, epoch in begun.items() if epoch < 27)
    new = next(point for point in range(30) if point not in begun)
    planner = planner_of(max_epochs=150, asked=(paused, new))
    for decision in small:
        planner.adopt(decision)
    *before, asked = run(planner, speed_seed=1)
    assert before == small
    assert [(segment.point, segment.from_epoch, segment.to_epoch, segment.why) for segment in asked.segments] == [
        (paused, begun[paused], 27, "asked"),
        (new, 0, 27, "asked"),
    ]
    again = planner_of(max_epochs=150, asked=(paused, new))
    for decision in [*small, asked]:
        again.adopt(decision)
    assert run(again, speed_seed=2) == [*small, asked]


def test_it_waits_for_the_results_that_a_decision_needs() -> None:
    planner = planner_of()
    screen = planner.next()
    assert screen is not None
    assert planner.next() is None
    for segment in screen.segments[1:]:
        tell(planner, segment.point, 0, 1)
    assert planner.next() is None
    assert not planner.ended
    tell(planner, screen.segments[0].point, 0, 1)
    assert planner.next() is not None
