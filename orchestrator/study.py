"""Proposals from an Optuna study, each one valid and new."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from lsmha.config import ModelConfig, TrainConfig
from orchestrator.search_space import Key, Point, SearchSpace
from orchestrator.sweep_config import ObjectiveConfig, SearchConfig

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Proposal:
    """One configuration to try."""

    number: int
    """Its place in the sweep, from 0."""
    point: Point
    model: ModelConfig
    train: TrainConfig


class ProposalStudy:
    """An Optuna study by ask and tell whose proposals are valid, distinct, and end when the space is used up.

    Optuna has no structural constraints and repeats itself in small spaces. So a proposal that is invalid or was made
    before is told to the study as failed, and the nearest point that is neither takes its place, under its own name:
    the sampler learns from what was really tried.

    `first` are points to propose before the configured warm start.

    Raises:
        UserError: A warm-start point is not in the space.
    """

    def __init__(
        self,
        space: SearchSpace,
        search: SearchConfig,
        objectives: Sequence[ObjectiveConfig],
        *,
        seed: int,
        first: Sequence[Point] = (),
    ) -> None:
        self.space = space
        self._metrics = [objective.metric for objective in objectives]
        self._grid = search.sampler == "grid"
        self._rng = np.random.default_rng(seed)
        self._visited: set[Key] = set()
        self._trials: dict[int, optuna.trial.Trial] = {}
        warm_start = space.checked_points(search.warm_start, field="search.warm_start")
        self._queue = deque({space.key(point): point for point in [*first, *warm_start]}.values())
        self._study = optuna.create_study(
            directions=[objective.direction for objective in objectives],
            sampler=_build_sampler(search, seed=seed),
        )

    def ask(self) -> Proposal | None:
        """The next configuration; None when the space is used up."""
        if self.space.is_finite and len(self._visited) == len(self.space.points):
            return None
        if self._queue or self._grid:
            point = self._queue.popleft() if self._queue else self._next_of_grid()
            trial = self._ask_for(point, params=self.space.params_of(point))
        else:
            trial, point = self._ask_sampler()
        self._visited.add(self.space.key(point))
        number = len(self._trials)
        self._trials[number] = trial
        model, train = self.space.build(point)
        return Proposal(number, point, model, train)

    def tell(self, number: int, metrics: Mapping[str, Any] | None) -> bool:
        """Report a proposal's metrics, or None for a failed one. Returns whether it counts as completed.

        A metric that is missing or not finite fails the proposal: Optuna would keep it as running for ever.
        """
        values = [(metrics or {}).get(name) for name in self._metrics]
        complete = all(isinstance(value, int | float) and np.isfinite(value) for value in values)
        if complete:
            self._study.tell(self._trials[number], [float(value) for value in values])  # type: ignore[arg-type]
        else:
            self._study.tell(self._trials[number], state=TrialState.FAIL)
        return complete

    def _ask_sampler(self) -> tuple[optuna.trial.Trial, Point]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial = self._study.ask(self.space.distributions)
        values = self.space.decode(trial.params)
        proposed = self.space.canonical(values)
        # A finite space has points left, or ask() had ended. With continuous dimensions a sampler may insist on values
        # at which every discrete point was visited; others are as good.
        while (point := self.space.nearest(values, visited=self._visited, rng=self._rng)) is None:
            values = self.space.redraw_continuous(values, rng=self._rng)
        if point == proposed:
            return trial, point
        self._study.tell(trial, state=TrialState.FAIL)
        return self._ask_for(point, params=self.space.encode(point, inactive=trial.params)), point

    def _ask_for(self, point: Point, *, params: dict[str, Any]) -> optuna.trial.Trial:
        """A study trial at given parameters, around the sampler."""
        self._study.enqueue_trial(params)
        trial = self._study.ask(self.space.distributions)
        assert self.space.canonical(self.space.decode(trial.params)) == point
        return trial

    def _next_of_grid(self) -> Point:
        return next(point for point in self.space.points if self.space.key(point) not in self._visited)


def _build_sampler(search: SearchConfig, *, seed: int) -> BaseSampler:
    # Optuna's defaults are made for hundreds of trials: in a small sweep a tenth to a quarter explores at first.
    startup = min(10, max(4, search.num_trials // 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match search.sampler:
            case "tpe":
                # The constant liar keeps proposals that run at the same time apart.
                return TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True)
            case "nsga2":
                return NSGAIISampler(seed=seed, population_size=min(50, max(4, search.num_trials // 4)))
            case "gp":
                return GPSampler(seed=seed, n_startup_trials=startup)
            case "random" | "grid":
                return RandomSampler(seed=seed)
