"""The decisions of a search, one after another, in an order that chance has no part in.

Which of two training runs ends first depends on the machine. So a decision does not use whatever results are there: it
uses those that would be there if so many workers trained at speeds that are known beforehand, and where reality is
behind, it waits for them. Given the same results, decisions are then the same, on a busy machine, after a break, and in
a replay from tables.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.search.front.decide import least_promising_first
from orchestrator.search.front.problem import FrontProblem, Progress, Segment, no_scores

PATIENCE = 2
"""Full trainings whose epochs go by without a gain worth having before a search ends: one low estimate may be wrong."""

Strategy = Callable[[FrontProblem, Progress], list[Segment]]
"""`decide`, or another, with its seed."""


@dataclass(frozen=True)
class Decision:
    """Segments that were decided on together."""

    number: int
    """Larger than those of the decisions before; from 0."""
    at: float
    """When it would have been made, in the time of the planner."""
    segments: tuple[Segment, ...]


class Planner:
    """Makes decisions, or takes over those made earlier.

    Args:
        problem: The space.
        strategy: Says what is next.
        workers: Trials at a time.
        epoch_cost: How long an epoch takes at each point, (n,), in any unit: good enough to tell short from long.
        max_epochs: No decision goes beyond; None for no limit.
        min_gain: Once no point was expected to gain more, over the hypervolume, for the epochs of `PATIENCE` full
            trainings, nothing more is decided.
        asked: Points to train to their end, whatever the budget, before anything else is decided.
    """

    def __init__(
        self,
        problem: FrontProblem,
        strategy: Strategy,
        *,
        workers: int,
        epoch_cost: np.ndarray,
        max_epochs: int | None = None,
        min_gain: float = 0.0,
        asked: Sequence[int] = (),
    ) -> None:
        self.problem = problem
        self.decisions: list[Decision] = []
        self.ended = False
        """Whether there is nothing more to decide."""
        self.expected_gain: float | None = None
        """Of the best point at the latest decision, also if it was not worth it; None before there was any."""
        self._strategy, self._epoch_cost = strategy, epoch_cost
        self._max_epochs, self._min_gain = max_epochs, min_gain
        self._asked = tuple(asked)
        self._scores = no_scores(problem)
        """What decisions may use now, at each rung, (n, rungs)."""
        self._failed: set[int] = set()
        self._results: dict[tuple[int, int], float | None] = {}
        """All that was told, by point and epoch."""
        self._under_way: list[tuple[float, int, int]] = []
        """When each segment would end, its point and its last epoch: a heap."""
        # One in four more than train, so that a worker that is faster than planned has something to do.
        self._free = [0.0] * (workers + max(1, workers // 4))
        self._now = 0.0

    @property
    def epochs(self) -> int:
        """What all decisions cost together."""
        return sum(segment.epochs for decision in self.decisions for segment in decision.segments)

    def adopt(self, decision: Decision) -> None:
        """Take over a decision that was made earlier, as the next one."""
        self._now = max(self._now, decision.at)
        for segment in decision.segments:
            begins = max(heapq.heappop(self._free), self._now)
            ends = begins + segment.epochs * float(self._epoch_cost[segment.point])
            heapq.heappush(self._free, ends)
            heapq.heappush(self._under_way, (ends, segment.point, segment.to_epoch))
        self.decisions.append(decision)
        self._now = max(self._now, self._free[0])

    def tell(self, point: int, epoch: int, score: float | None) -> None:
        """What a point scored at a rung; None if it failed before it got there."""
        self._results[point, epoch] = score

    def least_promising_first(self, points: Collection[int]) -> list[int]:
        """Points that pause, by what each that goes on is expected to add to the front, by all that was told."""
        scores = no_scores(self.problem)
        for (point, epoch), score in self._results.items():
            if score is not None:
                scores[point, self.problem.rungs.index(epoch)] = score
        failed = {point for (point, _), score in self._results.items() if score is None}
        return least_promising_first(self.problem, Progress(scores, failed=failed), points)

    def next(self) -> Decision | None:
        """The next decision; None where results are missing that it depends on, or the search has `ended`."""
        while not self.ended and self._caught_up():
            segments = self._lacking() or self._decide()
            if self._is_too_dear(segments):
                self.ended = True
            elif segments and not self._is_hopeless(segments):
                number = self.decisions[-1].number + 1 if self.decisions else 0
                decision = Decision(number, self._now, tuple(segments))
                self.adopt(decision)
                return decision
            elif self._under_way:
                self._now = self._under_way[0][0]
            else:
                self.ended = True
        return None

    def _caught_up(self) -> bool:
        """Take note of what would be known by now; False where it is not."""
        while self._under_way and self._under_way[0][0] <= self._now:
            _, point, end = self._under_way[0]
            if (point, end) not in self._results:
                return False
            heapq.heappop(self._under_way)
            for level, rung in enumerate(self.problem.rungs):
                score = self._results.get((point, rung)) if rung <= end else None
                if score is not None:
                    self._scores[point, level] = score
            if self._results[point, end] is None:
                self._failed.add(point)
        return True

    @property
    def _progress(self) -> Progress:
        pending = {point: epoch for _, point, epoch in self._under_way}
        return Progress(self._scores, pending, self._failed, self._asked)

    def _lacking(self) -> list[Segment]:
        """Of points that were asked for, what none of them is being trained for: all at first, later if more are."""
        progress, end = self._progress, self.problem.epochs
        busy, reached = {*progress.pending, *progress.failed}, self.problem.epochs_at(progress.level)
        free = [point for point in self._asked if point not in busy and reached[point] < end]
        return [Segment(point, int(reached[point]), end, "asked") for point in free]

    def _decide(self) -> list[Segment]:
        segments = self._strategy(self.problem, self._progress)
        self.expected_gain = max((s.gain for s in segments if s.gain is not None), default=self.expected_gain)
        return segments

    def _is_too_dear(self, segments: Sequence[Segment]) -> bool:
        cost = self.epochs + sum(segment.epochs for segment in segments)
        return self._max_epochs is not None and cost > self._max_epochs and not _is_asked(segments)

    def _is_hopeless(self, segments: Sequence[Segment]) -> bool:
        """Whether they gain too little, as did all that was decided on lately."""
        if not self._gain_too_little(segments):
            return False
        latest_first = (decision.segments for decision in reversed(self.decisions))
        chosen = (segments for segments in latest_first if not _is_asked(segments))
        lately = itertools.takewhile(self._gain_too_little, chosen)
        in_vain = sum(segment.epochs for segments in lately for segment in segments)
        return in_vain >= PATIENCE * self.problem.epochs

    def _gain_too_little(self, segments: Sequence[Segment]) -> bool:
        return any(segment.gain is not None and segment.gain < self._min_gain for segment in segments)


def _is_asked(segments: Sequence[Segment]) -> bool:
    return all(segment.why == "asked" for segment in segments)
