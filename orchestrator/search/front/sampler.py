"""`decide` as a sampler of Optuna, for any study of full trainings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from orchestrator.search.front.decide import decide
from orchestrator.search.front.features import structure_of
from orchestrator.search.front.problem import FrontProblem, Progress, no_scores, unit_spread


class FrontSampler(BaseSampler):
    """Proposes the points of a finite space that promise the front most, where one objective is known of each.

    For a study of two objectives, of which the second is the known one, to minimize:

        sampler = FrontSampler(points, latency_ms)
        study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)

    Each trial's `suggest_...` then gives the values of one of the points, each point once; what other trials do at the
    same time is taken into account. A space that is used up ends `study.optimize`.

    Args:
        points: Each with a value for every name that is suggested.
        cost: The second objective of each, finite and positive.
        seed: Of the first trials, which lie apart in cost.

    Raises:
        ValueError: `cost` does not fit.
    """

    def __init__(self, points: Sequence[Mapping[str, Any]], cost: Sequence[float], *, seed: int = 0) -> None:
        costs = np.asarray(cost, dtype=float)
        self._points = [dict(point) for point in points]
        self._problem = FrontProblem(costs, structure_of(points), unit_spread([costs]), rungs=(1,))
        self._seed = seed
        self._chosen: dict[int, int] = {}

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Choose the point of a trial that begins."""
        if trial.system_attrs.get("fixed_params"):  # somebody enqueued it
            return
        progress = self._progress(study, besides=trial.number)
        segments = decide(self._problem, progress, seed=self._seed)
        point = segments[0].point if segments else self._any_left(progress)
        if point is None:
            study.stop()
            point = trial.number % len(self._points)  # it has begun, so it needs one
        self._chosen[trial.number] = point

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """The value of its point."""
        return self._points[self._chosen[trial.number]][param_name]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """None: points are chosen whole."""
        return {}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing, as there is no such space."""
        return {}

    def _progress(self, study: Study, *, besides: int) -> Progress:
        scores, pending, failed = no_scores(self._problem), {}, set()
        sign = 1.0 if study.directions[0] == StudyDirection.MAXIMIZE else -1.0
        for trial in study.get_trials(deepcopy=False):
            if trial.number == besides:
                continue
            known = trial.number in self._chosen
            place = self._chosen[trial.number] if known else self._place_of(trial.params)
            if place is None:
                continue
            if trial.state == TrialState.COMPLETE:
                scores[place, 0] = sign * trial.values[0]
            elif trial.state == TrialState.RUNNING:
                pending[place] = 1
            elif trial.state.is_finished():
                failed.add(place)
        return Progress(scores, pending, failed)

    def _place_of(self, params: Mapping[str, Any]) -> int | None:
        """Of a trial that another process made, as far as it has suggested values."""
        return next((place for place, point in enumerate(self._points) if params and params == point), None)

    def _any_left(self, progress: Progress) -> int | None:
        """While the first trials run, and nothing is known yet, another one apart from them in cost."""
        free = progress.usable & (progress.level == 0)
        free[list(progress.pending)] = False
        order = np.argsort(self._problem.cost, kind="stable")
        left = [int(point) for point in order[free[order]]]
        return left[len(left) // 2] if left else None
