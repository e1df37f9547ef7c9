"""Five hundred proposals of every sampler over the shipped Pareto space, and breaks in the middle of a search."""

from __future__ import annotations

import json

import pytest
from repository import ROOT

from lsmha.config import ModelConfig
from lsmha.models.cost import model_cost
from orchestrator.config.sweep import SearchConfig
from orchestrator.config.yaml import load_sweep_config
from orchestrator.search.build import build_space
from orchestrator.search.space import Point
from orchestrator.search.study import ProposalStudy

PARETO = ROOT / "search_spaces" / "pareto.yaml"
PROPOSALS = {"gp": 200}
"""Where not 500: a Gaussian process takes a second or so for each."""
TOLD_EVERY = {"gp": 25}
"""It slows down with every result it fits, so it is told only some."""


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random", "grid"])
def test_hundreds_of_proposals_are_valid_and_distinct(sampler: str) -> None:
    proposals = PROPOSALS.get(sampler, 500)
    config = load_sweep_config(PARETO)
    space = build_space(config)
    valid = {space.key(point) for point in space.points}
    study = ProposalStudy(space, SearchConfig(sampler=sampler, num_trials=proposals), config.objectives, seed=0)
    seen = set()
    for number in range(proposals):
        proposal = study.ask()
        assert proposal is not None
        assert proposal.number == number
        assert space.key(proposal.point) in valid
        model = ModelConfig.model_validate(proposal.model.model_dump())
        assert model.canonical() == space.build(proposal.point)[0].canonical()
        assert model_cost(model).params > 0
        seen.add((model.canonical(), proposal.train))
        if number % TOLD_EVERY.get(sampler, 1) == 0:
            accuracy = 0.5 + 0.05 * model.depth - 0.02 * model.num_conv_blocks
            latency = 1 + model.depth - 0.8 * model.num_conv_blocks + 0.01 * model.num_heads
            study.tell(number, {"val_accuracy": accuracy, "latency_ms": latency})
    assert len(seen) == proposals


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random", "grid"])
def test_a_search_goes_on_after_a_break_as_without_one(sampler: str, seed: int) -> None:
    config = load_sweep_config(PARETO)
    space = build_space(config)
    batches = 6 if sampler == "gp" else 12

    def go(again: list[list[Point]]) -> list[list[Point]]:
        search = SearchConfig(sampler=sampler, num_trials=100, startup_trials=8)
        study = ProposalStudy(space, search, config.objectives, seed=seed)
        proposed = []
        for number in range(batches):
            before = again[number] if number < len(again) else [None] * 4
            proposals = [study.ask(replay=point) for point in before]
            for proposal in proposals:
                model = proposal.model
                accuracy = 0.5 + 0.05 * model.depth - 0.02 * model.num_conv_blocks
                latency = 1 + model.depth - 0.8 * model.num_conv_blocks + 0.01 * model.num_heads
                failed = proposal.number % 7 == 3
                study.tell(proposal.number, None if failed else {"val_accuracy": accuracy, "latency_ms": latency})
            proposed.append([proposal.point for proposal in proposals])
        return proposed

    whole = go([])
    for stop in (3, 5) if sampler == "gp" else range(1, batches, 3):
        assert go(json.loads(json.dumps(whole[:stop]))) == whole, stop
