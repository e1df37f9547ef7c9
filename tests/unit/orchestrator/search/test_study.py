"""Proposals: valid, distinct, reproducible, and honest about what failed."""

from __future__ import annotations

from typing import Any

import pytest
from optuna.trial import TrialState
from repository import ROOT

from lsmha.config import ModelConfig, TrainConfig
from orchestrator.config.sweep import FloatRange, IntRange, ObjectiveConfig, SearchConfig
from orchestrator.config.yaml import load_sweep_config
from orchestrator.errors import UserError
from orchestrator.search import study as study_module
from orchestrator.search.build import build_space
from orchestrator.search.space import SearchSpace
from orchestrator.search.study import Proposal, ProposalStudy

PARETO = ROOT / "search_spaces" / "pareto.yaml"
BASE = ModelConfig(embed_dim=16, depth=2, num_heads=1)
SAMPLERS = ("tpe", "nsga2", "gp", "random", "grid")
OBJECTIVES = (
    ObjectiveConfig(metric="val_accuracy", direction="maximize"),
    ObjectiveConfig(metric="latency_ms", direction="minimize"),
)


def study_of(dimensions: dict[str, Any], *, objectives=OBJECTIVES, seed: int = 0, **search: Any) -> ProposalStudy:
    return ProposalStudy(SearchSpace(dimensions, BASE, TrainConfig()), SearchConfig(**search), objectives, seed=seed)


def metrics_of(proposal: Proposal) -> dict[str, float]:
    """Synthetic results with a trade-off between both objectives."""
    model = proposal.model
    return {
        "val_accuracy": 0.5 + 0.04 * model.depth - 0.02 * model.num_conv_blocks - 0.001 * model.num_heads,
        "latency_ms": 1.0 + 0.5 * model.depth - 0.3 * model.num_conv_blocks + 0.01 * model.num_heads,
    }


def run(study: ProposalStudy, count: int) -> list[Proposal]:
    proposals = []
    while len(proposals) < count and (proposal := study.ask()) is not None:
        study.tell(proposal.number, metrics_of(proposal))
        proposals.append(proposal)
    return proposals


def architectures(proposals: list[Proposal]) -> list[tuple[ModelConfig, TrainConfig]]:
    return [(proposal.model.canonical(), proposal.train) for proposal in proposals]


@pytest.fixture(scope="module")
def pareto_space() -> SearchSpace:
    return build_space(load_sweep_config(PARETO))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_used_up_space_ends_the_search(sampler: str) -> None:
    # Head counts 1, 2, 4 without conv blocks, the same with one, and one plain CNN; 3 divides nothing.
    study = study_of({"num_heads": [1, 2, 3], "num_conv_blocks": [0, 1, 2]}, sampler=sampler, num_trials=20)
    assert len(study.space.points) == 5
    proposals = run(study, 20)
    assert len(set(architectures(proposals))) == len(proposals) == 5
    assert study.ask() is None


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_six_points_one_after_another_without_results(sampler: str) -> None:
    study = study_of({"num_heads": [1, 2, 4], "depth": [1, 2]}, sampler=sampler, num_trials=6)
    proposals = [study.ask() for _ in range(6)]
    assert None not in proposals
    assert len(set(architectures(proposals))) == 6
    assert study.ask() is None


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random"])
def test_continuous_dimension(sampler: str) -> None:
    dimensions = {
        "learning_rate": FloatRange(low=1e-4, high=1e-2, log=True),
        "num_heads": [1, 3],
        "depth": IntRange(low=1, high=2),
    }
    proposals = run(study_of(dimensions, sampler=sampler, num_trials=14), 14)
    rates = [proposal.train.learning_rate for proposal in proposals]
    assert len(set(architectures(proposals))) == 14
    assert all(1e-4 <= rate <= 1e-2 for rate in rates)
    assert len(set(rates)) > 7
    assert {proposal.model.num_heads for proposal in proposals} == {1}


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random"])
def test_continuous_dimension_that_plain_cnns_do_not_have(sampler: str) -> None:
    dimensions = {"mlp_ratio": FloatRange(low=1.0, high=4.0), "num_conv_blocks": [0, 2]}
    proposals = run(study_of(dimensions, sampler=sampler, num_trials=12), 12)
    assert len(set(architectures(proposals))) == 12
    assert sum(proposal.model.num_conv_blocks == 2 for proposal in proposals) <= 1
    transformers = [proposal for proposal in proposals if proposal.model.num_conv_blocks == 0]
    assert all(proposal.model.mlp_ratio == proposal.point["mlp_ratio"] for proposal in transformers)
    assert len({proposal.model.mlp_ratio for proposal in transformers}) == len(transformers)


@pytest.mark.parametrize("sampler", SAMPLERS[:-1])
def test_a_continuous_dimension_without_effect_does_not_keep_a_search_going(sampler: str) -> None:
    dimensions = {
        "attn_drop": FloatRange(low=0.0, high=0.5),
        "num_conv_blocks": [2],
        "conv_kind": ["conv3x3", "residual"],
    }
    assert len(run(study_of(dimensions, sampler=sampler, num_trials=12), 12)) == 2


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_points_to_evaluate_come_first_and_once(sampler: str) -> None:
    points = ({"num_heads": 4, "depth": 2}, {"num_heads": 1, "depth": 1}, {"num_heads": 4, "depth": 2})
    space = {"num_heads": [1, 2, 4], "depth": [1, 2]}
    study = study_of(space, sampler=sampler, num_trials=6, points_to_evaluate=points)
    proposals = run(study, 10)
    assert [proposal.point for proposal in proposals[:2]] == list(points[:2])
    assert len(set(architectures(proposals))) == len(proposals) == 6


def test_points_to_evaluate_in_a_continuous_space() -> None:
    point = {"learning_rate": 1e-3, "num_heads": 2}
    space = {"learning_rate": FloatRange(low=1e-4, high=1e-2), "num_heads": [1, 2]}
    study = study_of(space, points_to_evaluate=(point,))
    assert study.ask().point == point


@pytest.mark.parametrize(
    "point",
    [
        {"num_heads": 8, "learning_rate": 1e-3},
        {"num_heads": 3, "learning_rate": 1e-3},
        {"num_heads": 1, "learning_rate": 1.0},
        {"num_heads": "1", "learning_rate": 1e-3},
    ],
)
def test_points_to_evaluate_outside_the_space_are_refused(point: dict[str, Any]) -> None:
    dimensions = {"num_heads": [1, 2, 3], "learning_rate": FloatRange(low=1e-4, high=1e-2)}
    with pytest.raises(UserError, match=r"search\.points_to_evaluate"):
        study_of(dimensions, points_to_evaluate=(point,))


@pytest.mark.parametrize(
    "result",
    [
        None,
        {},
        {"val_accuracy": 0.99},
        {"val_accuracy": 0.99, "latency_ms": None},
        {"val_accuracy": 0.99, "latency_ms": "0.1"},
        {"val_accuracy": 0.99, "latency_ms": float("-inf")},
        {"val_accuracy": float("nan"), "latency_ms": 0.1},
        {"val_accuracy": float("inf"), "latency_ms": 0.1},
    ],
)
@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "grid"])
def test_a_result_that_is_no_result_counts_as_failed(sampler: str, result: dict[str, Any] | None) -> None:
    study = study_of({"num_heads": [1, 2, 4, 8], "depth": [1, 2, 3]}, sampler=sampler, num_trials=12)
    failed = study.ask()
    assert study.tell(failed.number, result) is False
    completed = [study.ask() for _ in range(8)]
    assert all(study.tell(proposal.number, metrics_of(proposal)) for proposal in completed)
    inner = study._study
    assert inner.best_trials
    assert all(trial.state is TrialState.COMPLETE for trial in inner.best_trials)
    assert all(trial.values != [0.99, 0.1] for trial in inner.best_trials)
    states = [trial.state for trial in inner.trials]
    assert TrialState.RUNNING not in states
    assert states.count(TrialState.COMPLETE) == 8


def test_all_failed_and_still_going() -> None:
    study = study_of({"num_heads": [1, 2, 4], "depth": [1, 2]}, num_trials=6)
    for _ in range(6):
        study.tell(study.ask().number, None)
    assert study.ask() is None
    assert {trial.state for trial in study._study.trials} == {TrialState.FAIL}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_one_objective(sampler: str) -> None:
    study = study_of({"num_heads": [1, 2, 4], "depth": [1, 2]}, objectives=OBJECTIVES[:1], sampler=sampler)
    assert len(run(study, 10)) == 6


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_same_seed_same_proposals(pareto_space: SearchSpace, sampler: str) -> None:
    def points(seed: int) -> list[dict[str, Any]]:
        study = ProposalStudy(pareto_space, SearchConfig(sampler=sampler, num_trials=30), OBJECTIVES, seed=seed)
        return [proposal.point for proposal in run(study, 25)]

    first = points(1)
    assert points(1) == first
    assert points(2) != first


def test_same_seed_same_proposals_of_gp() -> None:
    def points() -> list[dict[str, Any]]:
        study = study_of({"num_heads": [1, 2, 4, 8], "depth": IntRange(low=1, high=5)}, sampler="gp", num_trials=10)
        return [proposal.point for proposal in run(study, 8)]

    assert points() == points()


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_old_trials_off_the_front_are_forgotten(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "MAX_HISTORY", 6)
    study = study_of({"learning_rate": FloatRange(low=1e-4, high=1e-2)}, sampler=sampler, num_trials=40)
    best = study.ask()
    study.tell(best.number, {"val_accuracy": 1.0, "latency_ms": 0.1})
    for number in range(1, 31):
        proposal = study.ask()
        assert proposal.number == number
        study.tell(number, {"val_accuracy": 0.5, "latency_ms": 1.0 + number})
    known = study._study.get_trials(deepcopy=False)
    assert 6 < len(known) < 12
    assert [1.0, 0.1] in [trial.values for trial in known]
    assert known[-1].values == [0.5, 31.0]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_a_stopped_trial_measured_never_counts_as_a_result(sampler: str) -> None:
    study = study_of({"num_heads": [1, 2, 4, 8], "depth": [1, 2, 3]}, objectives=OBJECTIVES[:1], sampler=sampler)
    for number in range(8):
        proposal = study.ask()
        assert proposal is not None
        if number % 2:
            study.tell_stopped(number, [{"epoch": epoch, "val_accuracy": 0.9 + epoch / 100} for epoch in (1, 2)])
        else:
            study.tell(number, {"val_accuracy": 0.5})
    trials = study._study.trials
    pruned = [trial for trial in trials if trial.state is TrialState.PRUNED]
    assert [trial.intermediate_values for trial in pruned] == [{1: 0.91, 2: 0.92}] * 4
    assert study._study.best_value == 0.5
