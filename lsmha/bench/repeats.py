"""Candidates that are measured by turns, again and again: what disturbs one of them disturbs the others."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Name = TypeVar("Name")


@dataclass(frozen=True)
class Spread:
    """Median of some measurements, with the lowest, the highest and their number."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values), len(values))

    def format(self, spec: str) -> str:
        """`median (low to high)`, each formatted by `spec`, such as `.2f`."""
        return f"{self.median:{spec}} ({self.low:{spec}} to {self.high:{spec}})"


def interleaved(
    candidates: Mapping[Name, Callable[[], float]],
    repeats: int,
    *,
    on_repeat: Callable[[int, Name], None] = lambda *_: None,
) -> dict[Name, list[float]]:
    """What each candidate returned in each repeat, such as seconds.

    `on_repeat` is called before each measurement, with the repeat (from 0) and the candidate.
    """
    results: dict[Name, list[float]] = {name: [] for name in candidates}
    for repeat in range(repeats):
        for name, measure in candidates.items():
            on_repeat(repeat, name)
            results[name].append(measure())
    return results


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Ratios of two candidates, repeat by repeat."""
    return Spread.of([above / below for above, below in zip(numerators, denominators, strict=True)])
