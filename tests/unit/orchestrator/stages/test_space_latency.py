"""What is measured before the first trial: each network once, and few of them."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.config.sweep import SweepConfig
from orchestrator.run_folder.content_hash import architecture_hash
from orchestrator.search.build import build_space
from orchestrator.stages.space_latency import measured_first

HEADS_AND_DEPTHS = {"num_heads": [1, 2, 4], "depth": [1, 2]}
ACCURACY = {"metric": "val_accuracy", "direction": "maximize"}
SAMPLER = {"strategy": "sampler"}
PARAMS = {"metric": "params", "direction": "minimize"}


def number_measured(space: dict[str, Any], **sections: Any) -> int:
    config = SweepConfig.model_validate({"name": "tiny", "model": {"embed_dim": 16}, "space": space, **sections})
    models = measured_first(config, build_space(config))
    assert len({architecture_hash(model) for model in models}) == len(models)
    return len(models)


@pytest.mark.parametrize(
    ("dimension", "number"),
    [
        ({}, 6),
        ({"batch_size": [16, 32]}, 6),
        ({"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}, 6),
        ({"drop_path": {"low": 0.0, "high": 0.3}}, 6),
        ({"num_conv_blocks": [0, 1]}, 10),  # at depth 1 it leaves no heads to tell apart
        ({"mlp_ratio": {"low": 1.0, "high": 2.0}}, 0),  # without end
    ],
    ids=["plain", "batch size", "learning rate", "dropout", "no heads left", "width of the MLP"],
)
def test_each_network_that_latency_tells_apart_is_measured_once(dimension: dict[str, Any], number: int) -> None:
    assert number_measured({**HEADS_AND_DEPTHS, **dimension}, search=SAMPLER) == number


@pytest.mark.parametrize(("limit", "number"), [(0, 0), (5, 0), (6, 6)])
def test_none_is_where_there_are_more_than_the_limit(limit: int, number: int) -> None:
    assert number_measured(HEADS_AND_DEPTHS, search=SAMPLER, latency={"measure_first": limit}) == number


@pytest.mark.parametrize("strategy", ["front", "moasha"])
def test_all_are_where_a_strategy_decides_by_them(strategy: str) -> None:
    sections = {"search": {"strategy": strategy}, "latency": {"measure_first": 0}}
    assert number_measured(HEADS_AND_DEPTHS, **sections) == 6


def test_all_are_where_latency_is_a_column_alone() -> None:
    assert number_measured(HEADS_AND_DEPTHS, search=SAMPLER, objectives=[ACCURACY, PARAMS]) == 6
