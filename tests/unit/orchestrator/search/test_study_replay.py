"""A search that goes on after a break proposes what it would have proposed without one."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import pytest
from optuna.trial import TrialState

from lsmha.config import ModelConfig, TrainConfig
from orchestrator.config.sweep import FloatRange, IntRange, ObjectiveConfig, SearchConfig
from orchestrator.search.space import Point, SearchSpace
from orchestrator.search.study import Proposal, ProposalStudy

SAMPLERS = ("tpe", "nsga2", "gp", "random", "grid")
SPACE: dict[str, Any] = {
    "num_heads": [1, 2, 3, 4, 8],  # 3 divides nothing
    "depth": IntRange(low=1, high=4),
    "num_conv_blocks": [0, 1, 2],
    "conv_kind": ["conv3x3", "residual"],
}
CONTINUOUS: dict[str, Any] = {"learning_rate": FloatRange(low=1e-4, high=1e-2, log=True), "num_heads": [1, 3, 4]}
OBJECTIVES = (
    ObjectiveConfig(metric="val_accuracy", direction="maximize"),
    ObjectiveConfig(metric="latency_ms", direction="minimize"),
)
BATCH = 4


def batches_of(sampler: str) -> int:
    """How many to ask for; a Gaussian process takes its time, so more of it is in the slow tier."""
    return 2 if sampler == "gp" else 5


FIRST = ({"num_heads": 8, "depth": 3, "num_conv_blocks": 1, "conv_kind": "residual"},)


def study_of(
    sampler: str, *, seed: int = 0, first: Sequence[Point] = (), space: dict[str, Any] = SPACE
) -> ProposalStudy:
    search = SearchConfig(sampler=sampler, num_trials=20, startup_trials=3)
    base = ModelConfig(embed_dim=16, depth=2, num_heads=1)
    return ProposalStudy(SearchSpace(space, base, TrainConfig()), search, OBJECTIVES, seed=seed, first=first)


def result_of(proposal: Proposal) -> dict[str, float] | None:
    """A made-up result, the same for the same configuration; every fifth or so fails."""
    noise = random.Random(str(sorted(proposal.point.items())))
    if noise.random() < 0.2:
        return None
    model = proposal.model
    return {
        "val_accuracy": 0.5 + 0.04 * model.depth + 0.01 * noise.random(),
        "latency_ms": 1.0 + 0.5 * model.depth - 0.3 * model.num_conv_blocks + 0.1 * noise.random(),
    }


def go(
    study: ProposalStudy, batches: int, *, again: Sequence[Sequence[Point | None]] = (), enqueued: bool | None = None
) -> list[list[Point]]:
    """Batches of proposals, told at the end of each: first those proposed before, then new ones."""
    proposed = []
    for number in range(batches):
        before = again[number] if number < len(again) else [None] * BATCH
        proposals = [
            proposal for point in before if (proposal := study.ask(replay=point, enqueued=enqueued)) is not None
        ]
        for proposal in proposals:
            study.tell(proposal.number, result_of(proposal))
        proposed.append([proposal.point for proposal in proposals])
    return proposed


def stored(batches: list[list[Point]]) -> list[list[Point]]:
    """As they come back from a record."""
    return json.loads(json.dumps(batches))


def flat(batches: list[list[Point]]) -> list[Point]:
    return [point for batch in batches for point in batch]


def check_every_break(sampler: str, *, seed: int, space: dict[str, Any], batches: int) -> None:
    first = FIRST if space is SPACE else ()
    whole = go(study_of(sampler, seed=seed, first=first, space=space), batches)
    assert len(flat(whole)) == BATCH * batches
    for stop in range(1, batches):
        study = study_of(sampler, seed=seed, first=first, space=space)
        assert go(study, batches, again=stored(whole[:stop])) == whole, stop


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("sampler", "space"),
    [
        *(pytest.param(sampler, SPACE, id=f"{sampler}-finite") for sampler in ("tpe", "nsga2", "random", "grid")),
        *(pytest.param(sampler, CONTINUOUS, id=f"{sampler}-continuous") for sampler in ("tpe", "nsga2", "random")),
    ],
)
def test_after_a_break_the_search_is_where_it_was(sampler: str, space: dict[str, Any], seed: int) -> None:
    check_every_break(sampler, seed=seed, space=space, batches=5)


def test_a_break_after_a_break() -> None:
    whole = go(study_of("tpe"), 5)
    proposed: list[list[Point]] = []
    for batches in range(1, 6):
        proposed = go(study_of("tpe"), batches, again=stored(proposed))
    assert proposed == whole


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_what_was_proposed_counts_whatever_the_sampler_thinks_now(sampler: str) -> None:
    """Such as another version of it."""
    batches = batches_of(sampler)
    other = go(study_of("random", seed=99), batches - 1)
    study = study_of(sampler)
    proposed = go(study, batches, again=stored(other))
    assert proposed[:-1] == other
    points = [tuple(point.items()) for point in flat(proposed)]
    assert len(set(points)) == len(points)
    states = [trial.state for trial in study._study.trials]
    assert TrialState.RUNNING not in states
    results = [result_of(Proposal(0, point, *study.space.build(point), False)) for point in flat(proposed)]
    assert states.count(TrialState.COMPLETE) == sum(result is not None for result in results)


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random", "grid"])
def test_points_that_are_asked_for_later_come_next(sampler: str) -> None:
    before = go(study_of(sampler), 2)
    space = study_of(sampler).space
    tried = {space.key(point) for point in flat(before)}
    new = [point for point in space.points if space.key(point) not in tried][-3:]
    again = before[0][1]  # tried already: not proposed twice
    proposed = go(study_of(sampler, first=[new[0], again, *new[1:]]), 4, again=stored(before))
    assert proposed[:2] == before
    assert proposed[2][:3] == new
    assert len({space.key(point) for point in flat(proposed)}) == 16


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_naming_what_was_tried_changes_nothing(sampler: str) -> None:
    """`finalists.include` may name a trial of an earlier session."""
    whole = go(study_of(sampler), 5)
    named = study_of(sampler, first=[whole[0][2], whole[1][0]])
    assert go(named, 5, again=stored(whole[:2]), enqueued=False) == whole


def test_a_batch_whose_record_is_lost_is_asked_anew() -> None:
    """Trials that have a record are proposed as that says, the others by the sampler."""
    whole = go(study_of("tpe"), 5)
    known: list[list[Point | None]] = [*whole[:2], [whole[2][0], None, whole[2][2], None]]
    assert go(study_of("tpe"), 5, again=known) == whole


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_used_up_space_stays_used_up(sampler: str) -> None:
    space = {"num_heads": [1, 2, 3], "num_conv_blocks": [0, 1, 2]}
    whole = go(study_of(sampler, space=space), 3)
    assert [len(batch) for batch in whole] == [4, 1, 0]
    study = study_of(sampler, space=space)
    assert go(study, 3, again=stored(whole[:1])) == whole
    assert study.ask() is None
