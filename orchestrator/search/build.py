"""What a sweep's settings make of the search: its space, its study, its rungs, and how much there will be to train."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lsmha.config import DATA_DEFINED
from orchestrator.config.sweep import SweepConfig
from orchestrator.errors import UserError
from orchestrator.search.front.decide import Opening
from orchestrator.search.front.problem import default_rungs
from orchestrator.search.space import SearchSpace
from orchestrator.search.study import ProposalStudy

if TYPE_CHECKING:  # torch takes seconds to load, and to validate settings nothing else needs it
    from lsmha.data import Dataset


def build_space(config: SweepConfig, dataset: Dataset | None = None) -> SearchSpace:
    """The search space over the configured base, with the architecture's ends fitted to the data set if given.

    Raises:
        UserError: It has no valid point, or a choice that is part of none.
    """
    fitted = {name: getattr(dataset, name) for name in DATA_DEFINED} if dataset else {}
    space = SearchSpace(config.space, config.model.model_copy(update=fitted), config.train)
    space.check_choices()
    return space


def build_study(config: SweepConfig, space: SearchSpace) -> ProposalStudy:
    """The study that proposes the sweep's trials."""
    included = space.checked_points(config.finalists.include, field="finalists.include")
    return ProposalStudy(space, config.search, config.objectives, seed=config.seed, first=included)


def num_trials(config: SweepConfig, space: SearchSpace) -> int:
    """Trials that a sampler will make: its budget, or the whole space where that is smaller."""
    return min(config.search.num_trials, len(space.points)) if space.is_finite else config.search.num_trials


def rungs_of(config: SweepConfig) -> tuple[int, ...]:
    """Epochs after which trials of a strategy may pause; the last one is their end."""
    search, train = config.search, config.train
    if search.rungs is not None:
        return search.rungs
    factor = search.reduction_factor if search.strategy == "moasha" else 3
    return default_rungs(train.epochs, warmup=train.warmup_epochs, factor=factor)


def epochs_to_train(config: SweepConfig, points: int) -> int:
    """The budget of a strategy over so many points.

    Raises:
        UserError: It is a number, and not enough for a front.
    """
    epochs, budget, rungs = config.train.epochs, config.search.max_epochs, rungs_of(config)
    opening = Opening.of(points, rungs).epochs if config.search.strategy == "front" else epochs
    least = min(points * epochs, opening + epochs * len(config.finalists.include))
    if isinstance(budget, float):
        return max(least, math.ceil(budget * points * epochs))
    if budget < least:
        raise UserError(
            f"search.max_epochs: must be at least {least} for {points} configurations of {epochs} epochs (what "
            f"strategy {config.search.strategy} begins with), but got {budget}"
        )
    return min(budget, points * epochs)


def trained_metric(config: SweepConfig) -> tuple[str, float]:
    """The objective of a strategy that is trained for, and the sign that makes more of it better."""
    trained = config.trained_objective()
    assert trained is not None  # or the settings had been refused
    return trained.metric, 1.0 if trained.direction == "maximize" else -1.0
