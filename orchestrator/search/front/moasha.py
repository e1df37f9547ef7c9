"""Multi-objective asynchronous successive halving, in which runs pause at their rungs and go on later.

After Schmucker et al. (2021), "Multi-objective Asynchronous Successive Halving": of the runs that got to a rung, one in
`eta` goes on to the next, the best ones by rank of their front and, within a front, by an epsilon net that spreads
them. Theirs ends the others for good; here they wait, as later ones may move them up.
"""

from __future__ import annotations

import moocore
import numpy as np

from orchestrator.search.front.problem import FrontProblem, Progress, Segment


def decide_by_rank(problem: FrontProblem, progress: Progress, *, seed: int, eta: int = 3) -> list[Segment]:
    """The next segment: the highest promotion that is due, else a new point at random; none when all is done.

    Arguments are those of `decide`; points that were asked for count as any other.
    """
    scores, level = progress.scores, progress.level
    busy = {*progress.pending, *progress.failed}
    for rung in range(len(problem.rungs) - 2, -1, -1):
        there = np.flatnonzero(level > rung)
        due = best_spread(problem.cost[there], scores[there, rung])[: len(there) // eta]
        # Those that are on their way to a higher rung take a place, too.
        waiting = [point for point in there[due] if level[point] == rung + 1 and point not in busy]
        if waiting:
            return [_promotion(problem, int(waiting[0]), rung)]
    for point in np.random.default_rng(seed).permutation(len(problem)):
        if level[point] == 0 and point not in busy:
            return [Segment(int(point), 0, problem.rungs[0], "rank")]
    # All have begun: what is left is best first, where the most are.
    for rung in range(len(problem.rungs) - 1):
        there = np.flatnonzero((level == rung + 1) & ~np.isin(np.arange(len(problem)), list(busy)))
        if len(there):
            first = best_spread(problem.cost[there], scores[there, rung])[0]
            return [_promotion(problem, int(there[first]), rung)]
    return []


def _promotion(problem: FrontProblem, point: int, rung: int) -> Segment:
    return Segment(point, problem.rungs[rung], problem.rungs[rung + 1], "rank")


def best_spread(cost: np.ndarray, score: np.ndarray) -> np.ndarray:
    """Indices of points, front after front, each front from its best score on always the one farthest from those before
    it, in units of the range of all."""
    if len(cost) == 0:
        return np.array([], dtype=int)
    values = np.stack([cost, -score], axis=1)
    scaled = (values - values.min(axis=0)) / np.maximum(np.ptp(values, axis=0), 1e-12)
    rank = moocore.pareto_rank(values)
    order: list[int] = []
    for front in np.unique(rank):
        left = np.flatnonzero(rank == front)
        nearest = np.full(len(left), np.inf)
        chosen = int(np.lexsort((cost[left], -score[left]))[0])
        while True:
            order.append(int(left[chosen]))
            nearest = np.minimum(nearest, np.linalg.norm(scaled[left] - scaled[left[chosen]], axis=1))
            nearest[chosen] = -1.0
            if (nearest < 0).all():
                break
            chosen = int(np.argmax(nearest))
    return np.array(order)
