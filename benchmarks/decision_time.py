"""How long a decision of `search.strategy: front` takes, by the size of the space.

    python benchmarks/decision_time.py --out benchmarks/decision_time

Spaces and learning curves are made up: a decision takes as long, whatever the values are. A search that has used up its
default budget, 15 % of the grid's epochs, is imitated by three points in ten at the first of four rungs, and one in
ten, one in twenty and one in 25 at the others; another, with all at the first rung, has used up far more.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lsmha.bench.report import Report, Table
from orchestrator.search.front.decide import decide
from orchestrator.search.front.problem import FrontProblem, Progress, no_scores, unit_spread

RUNGS = (1, 3, 9, 27)
SPACES = (100, 500, 1000, 2000)
SHARES = {"budget used up": (0.3, 0.1, 0.05, 0.04), "all begun": (1.0, 0.3, 0.1, 0.1)}
"""Of the points that got to each rung."""


def made_up(points: int) -> tuple[FrontProblem, np.ndarray]:
    """A space, and what each of its points scores at each rung, (points, rungs)."""
    rng = np.random.default_rng(0)
    structure = rng.random((points, 5))
    cost = np.exp(structure @ rng.random(5))
    sizes = [cost * np.exp(spread * rng.standard_normal(points)) for spread in (0.1, 0.2)]
    final = 0.5 + 0.1 * np.log(cost) + 0.1 * np.sin(3 * structure[:, 0]) + 0.01 * rng.standard_normal(points)
    curves = final[:, None] * (1 - 0.5 * np.exp(-np.array(RUNGS) / 6))
    return FrontProblem(cost, structure, unit_spread([cost, *sizes]), RUNGS), curves


def decision_s(points: int, shares: tuple[float, ...], turns: int) -> list[float]:
    """Seconds of each turn."""
    problem, curves = made_up(points)
    scores = no_scores(problem)
    order = np.random.default_rng(1).permutation(points)
    for rung, share in enumerate(shares):
        there = order[: round(share * points)]
        scores[there, rung] = curves[there, rung]
    taken = []
    for _ in range(turns):
        began = time.perf_counter()
        [_] = decide(problem, Progress(scores), seed=0)
        taken.append(time.perf_counter() - began)
    return taken


@dataclass(frozen=True)
class Timed:
    """How long decisions took."""

    points: int
    situation: str
    seconds: list[float]

    def cell(self) -> str:
        return f"{statistics.median(self.seconds):.3f} ({min(self.seconds):.3f} to {max(self.seconds):.3f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, help="stem of the files for the results")
    options = parser.parse_args()
    timed = [
        Timed(points, situation, decision_s(points, shares, options.turns))
        for points in SPACES
        for situation, shares in SHARES.items()
    ]
    rows = [[str(points), *(found.cell() for found in timed if found.points == points)] for points in SPACES]
    Report(
        title="How long a decision takes",
        protocol=f"Seconds: median of {options.turns} turns (least to most).",
        command="python benchmarks/decision_time.py",
        tables=[Table(["points", *SHARES], rows)],
        results={"decisions": timed},
    ).publish(options.out)


if __name__ == "__main__":
    main()
