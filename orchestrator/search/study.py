"""Proposals from an Optuna study, each one valid and new."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from lsmha.config import ModelConfig, TrainConfig
from orchestrator.config.sweep import ObjectiveConfig, SearchConfig
from orchestrator.search.space import Point, PointKey, SearchSpace

optuna.logging.set_verbosity(optuna.logging.WARNING)

MAX_HISTORY = 300
"""Trials that tpe and gp learn from at least, where there are as many: the latest, and the front of all. What
they learn from is what each question to them costs (gp: to the third power), and tpe gives old trials that are not on
the front hardly any weight."""


@dataclass(frozen=True)
class Proposal:
    """One configuration to try."""

    number: int
    """Its place in the sweep, from 0."""
    point: Point
    model: ModelConfig
    train: TrainConfig
    enqueued: bool
    """Whether it was waiting, as a point to try first, and the sampler was not asked."""


class ProposalStudy:
    """An Optuna study by ask and tell whose proposals are valid, distinct, and end when the space is used up.

    Optuna has no structural constraints and repeats itself in small spaces. So a proposal that is invalid or was made
    before is told to the study as failed, and the nearest point that is neither takes its place, under its own name:
    the sampler learns from what was really tried.

    The same seed, questions and answers give the same proposals. So a search goes on after a break by asking and
    telling again what was asked and told before.

    `first` are points to propose before the configured ones.

    Raises:
        UserError: A point to evaluate first is not in the space.
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
        self._visited: set[PointKey] = set()
        self._trials: dict[int, optuna.trial.Trial] = {}
        """Those not told yet, by number."""
        self._asked = 0
        configured = space.checked_points(search.points_to_evaluate, field="search.points_to_evaluate")
        self._queue = {space.key(point): point for point in [*first, *configured]}
        self._directions = [objective.direction for objective in objectives]
        self._search, self._seed = search, seed
        self._num_restarts = 0
        self._study = self._new_study()

    def ask(self, *, replay: Point | None = None, enqueued: bool | None = None) -> Proposal | None:
        """The next configuration; None when the space is used up.

        `replay` is what was proposed at this place before the break, and `enqueued` what that proposal said of itself,
        if it is known. Should the sampler think otherwise now (another version of it), what was proposed counts.
        """
        if self.space.is_finite and len(self._visited) == len(self.space.points):
            return None
        if replay is not None:
            enqueued = self.space.key(replay) in self._queue if enqueued is None else enqueued
            trial, point = self._replay(replay, sample=not self._grid and not enqueued)
        elif (waiting := self._next_of_queue()) is not None:
            enqueued = True
            trial, point = self._ask_for(waiting, params=self.space.params_of(waiting)), waiting
        else:
            enqueued = False
            trial, point = self._ask_sampler()
        self._visited.add(self.space.key(point))
        number = self._asked
        self._asked += 1
        self._trials[number] = trial
        model, train = self.space.build(point)
        return Proposal(number, point, model, train, enqueued)

    def tell(self, number: int, metrics: Mapping[str, Any] | None) -> bool:
        """Report a proposal's metrics, or None for a failed one. Returns whether it counts as completed.

        A metric that is missing or not finite fails the proposal: Optuna would keep it as running for ever.
        """
        values = [(metrics or {}).get(name) for name in self._metrics]
        complete = all(isinstance(value, int | float) and np.isfinite(value) for value in values)
        trial = self._trials.pop(number)
        if complete:
            self._study.tell(trial, [float(value) for value in values])  # type: ignore[arg-type]
        else:
            self._study.tell(trial, state=TrialState.FAIL)
        self._forget_sometimes()
        return complete

    def tell_stopped(self, number: int, curve: Sequence[Mapping[str, Any]]) -> None:
        """Report a proposal that was stopped early: what each epoch measured of the one objective. None of it counts as
        the value of a completed one."""
        trial = self._trials.pop(number)
        for metrics in curve:
            trial.report(metrics[self._metrics[0]], step=int(metrics["epoch"]))
        self._study.tell(trial, state=TrialState.PRUNED)
        self._forget_sometimes()

    def _new_study(self) -> optuna.Study:
        sampler = _build_sampler(self._search, seed=(self._seed + self._num_restarts) % 2**32)
        return optuna.create_study(directions=self._directions, sampler=sampler)

    def _forget_sometimes(self) -> None:
        """Go on with a study of `MAX_HISTORY` trials when there are twice as many."""
        if self._trials or self._search.sampler not in ("tpe", "gp"):
            return
        known = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
        if len(known) < 2 * MAX_HISTORY:
            return
        front = {trial.number for trial in self._study.best_trials}
        kept = [trial for trial in known[:-MAX_HISTORY] if trial.number in front] + known[-MAX_HISTORY:]
        self._num_restarts += 1
        self._study = self._new_study()
        self._study.add_trials(kept)

    def _replay(self, point: Point, *, sample: bool) -> tuple[optuna.trial.Trial, Point]:
        if sample:
            trial, proposed = self._ask_sampler()  # so that the sampler is afterwards as it was then
            if proposed == point:
                return trial, point
            self._study.tell(trial, state=TrialState.FAIL)
        return self._ask_for(point, params=self.space.params_of(point)), point

    def _next_of_queue(self) -> Point | None:
        """The next point that is no question for the sampler; None when it is one."""
        while self._queue:
            key = next(iter(self._queue))
            point = self._queue.pop(key)
            if key not in self._visited:
                return point
        return self._next_of_grid() if self._grid else None

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
    startup = search.startup()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        match search.sampler:
            case "tpe":
                # The constant liar keeps proposals that run at the same time apart.
                return TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True)
            case "nsga2":
                return NSGAIISampler(seed=seed, population_size=max(2, startup))
            case "gp":
                return GPSampler(seed=seed, n_startup_trials=startup)
            case "random" | "grid":
                return RandomSampler(seed=seed)
