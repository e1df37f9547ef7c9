"""Ways to do the same that take turns: what disturbs one of them disturbs the others."""

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


def in_turns(
    ways: Mapping[Name, Callable[[], float]], turns: int, *, on_turn: Callable[[int, Name], None] = lambda *_: None
) -> dict[Name, list[float]]:
    """What each way returned in each turn, such as seconds.

    `on_turn` is called before each measurement, with the turn (from 0) and the way.
    """
    results: dict[Name, list[float]] = {name: [] for name in ways}
    for turn in range(turns):
        for name, measure in ways.items():
            on_turn(turn, name)
            results[name].append(measure())
    return results


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Ratios of two ways, turn by turn."""
    return Spread.of([above / below for above, below in zip(numerators, denominators, strict=True)])
