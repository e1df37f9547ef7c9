"""What to train next, and how far: the segments of most expected gain for each epoch that they still cost."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.search.front.curve_model import Prediction, predict_final
from orchestrator.search.front.gain import Reference, Staircase
from orchestrator.search.front.problem import FrontProblem, Progress, Segment

SCREENED, SCREEN_EPOCHS = 0.3, 0.04
"""How much of a space is trained to the first rung at first, unless that is more than this share of all its epochs."""
SCREENED_FEWEST, STARTED_FEWEST = 16, 5
"""How many points at least, and where there is but one rung, so that each costs all its epochs."""
ANCHORS = 3
"""Points that are then trained to their end, each of another range of costs."""


def decide(problem: FrontProblem, progress: Progress, *, seed: int) -> list[Segment]:
    """The next segments, which can be trained in any order; none where it has to wait for pending ones, or all is done.

    The same arguments give the same segments, whatever the order in which the scores arrived.

    1. The screen: of each range of costs one point is trained to the first rung.
    2. The anchors: of the screened in three ranges of costs the best are trained to their end.
    3. From then on, one segment at a time: final scores are predicted, and the point of most expected gain for each
       epoch that is left to its end is trained to its next rung. Points that are pending are believed to end as
       predicted.

    Args:
        problem: Of n points.
        progress: With scores at its rungs.
        seed: Of the screen.
    """
    level, chosen = progress.level, progress.chosen
    # How far each will have got once what is pending has ended.
    reach = level.copy()
    for point, epoch in progress.pending.items():
        reach[point] = max(reach[point], problem.level(epoch))
    if not reach[chosen].any():
        return _screen(problem, seed, np.flatnonzero(chosen))
    if not level[progress.usable].any():
        return []
    if len(problem.rungs) > 1 and reach[chosen].max() == 1:
        waits = set(progress.pending) - set(progress.asked)
        return [] if waits else _anchors(problem, progress.scores[:, 0], np.flatnonzero(chosen & (level == 1)))
    predicted = predict_final(problem, progress.scores)
    return _most_gain(problem, level, predicted, _Waiting.of(problem, progress, predicted))


@dataclass(frozen=True)
class Opening:
    """What is trained of a space before there is anything to expect: with less, there is hardly a front."""

    screened: int
    """Points trained to the first rung."""
    screen_epochs: int
    anchors: int
    """Those of them that go on to their end; none where the first rung is that."""
    anchor_epochs: int

    @classmethod
    def of(cls, points: int, rungs: Sequence[int]) -> Opening:
        """That of a space of so many points."""
        screened = _num_screened(points, rungs)
        anchors = min(ANCHORS, screened) if len(rungs) > 1 else 0
        return cls(screened, screened * rungs[0], anchors, anchors * (rungs[-1] - rungs[0]))

    @property
    def epochs(self) -> int:
        """All together."""
        return self.screen_epochs + self.anchor_epochs


def _num_screened(points: int, rungs: Sequence[int]) -> int:
    fewest = SCREENED_FEWEST if len(rungs) > 1 else STARTED_FEWEST
    share = min(SCREENED, SCREEN_EPOCHS * rungs[-1] / rungs[0])
    return min(points, max(fewest, round(share * points)))


def _screen(problem: FrontProblem, seed: int, usable: np.ndarray) -> list[Segment]:
    if len(usable) == 0:
        return []
    order = usable[np.argsort(problem.cost[usable], kind="stable")]
    bins = np.array_split(order, _num_screened(len(order), problem.rungs))
    rng = np.random.default_rng(seed)
    return [Segment(point, 0, problem.rungs[0], "screen") for point in sorted(int(rng.choice(part)) for part in bins)]


def _anchors(problem: FrontProblem, first: np.ndarray, screened: np.ndarray) -> list[Segment]:
    order = screened[np.argsort(problem.cost[screened], kind="stable")]
    best = [int(part[np.argmax(first[part])]) for part in np.array_split(order, ANCHORS) if len(part)]
    return [Segment(point, problem.rungs[0], problem.epochs, "anchor") for point in best]


def least_promising_first(problem: FrontProblem, progress: Progress, points: Collection[int]) -> list[int]:
    """Points that are not at their end by what each is expected to gain for each epoch that is left to it.

    Args:
        problem: Of n points.
        progress: With a score of one point at least.
        points: To put in order.
    """
    waiting = _Waiting.of(problem, progress, predict_final(problem, progress.scores))
    asked = np.isin(waiting.points, list(points))
    return [int(point) for point in waiting.points[asked][np.argsort(waiting.merit[asked], kind="stable")]]


def front_reference(cost: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> Reference:
    """That of the expected front, as far out as a front reaches whose scores are a standard deviation better.

    Costly points of which little is known are expected to be worse than a cheap one that is known. The expected front
    then ends before them, and a point beyond the reference gains nothing, however good it may be: none of them would
    ever be tried.
    """
    expected, hoped = Reference.behind(cost, mean), Reference.behind(cost, mean + sd)
    return Reference(max(expected.cost, hoped.cost), expected.score)


@dataclass(frozen=True)
class _Waiting:
    """Points that could be trained next."""

    points: np.ndarray
    epochs: np.ndarray
    """That each has behind it."""
    gain: np.ndarray
    """Expected, of the front's hypervolume."""
    merit: np.ndarray
    """The same for each epoch that is left."""
    hypervolume: float
    """Of the front without them."""

    @classmethod
    def of(cls, problem: FrontProblem, progress: Progress, predicted: Prediction) -> _Waiting:
        level, usable = progress.level, progress.usable
        taken = usable & (level == len(problem.rungs))
        taken[list(progress.pending)] = True
        free = np.flatnonzero(usable & ~taken)
        reference = front_reference(problem.cost[usable], predicted.mean[usable], predicted.sd[usable])
        stairs = Staircase.under(problem.cost[taken], predicted.mean[taken], reference)
        gain = stairs.expected_gain(problem.cost[free], predicted.mean[free], predicted.sd[free])
        epochs = problem.epochs_at(level[free])
        return cls(free, epochs, gain, gain / (problem.epochs - epochs), stairs.hypervolume)


def _most_gain(problem: FrontProblem, level: np.ndarray, predicted: Prediction, waiting: _Waiting) -> list[Segment]:
    if len(waiting.points) == 0:
        return []
    # Of equal ones the cheapest, of those the first.
    best = np.lexsort((problem.cost[waiting.points], -waiting.merit))[0]
    point = int(waiting.points[best])
    return [
        Segment(
            point,
            int(waiting.epochs[best]),
            problem.rungs[level[point]],
            "gain",
            mean=float(predicted.mean[point]),
            sd=float(predicted.sd[point]),
            gain=float(waiting.gain.max()) / max(waiting.hypervolume, 1e-12),
        )
    ]
