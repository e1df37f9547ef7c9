"""What a sweep's settings make of the search: its space, its study, and how many trials there will be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lsmha.config import DATA_DEFINED
from orchestrator.config.sweep import SweepConfig
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
    """Trials that the search will make: its budget, or the whole space where that is smaller."""
    return min(config.search.num_trials, len(space.points)) if space.is_finite else config.search.num_trials
