"""The search space against brute force over its combinations, and its nearest valid new point."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from repository import SEARCH_SPACES

from lsmha.config import ModelConfig, TrainConfig
from orchestrator.config.sweep import FloatRange, IntRange
from orchestrator.config.yaml import load_sweep_config
from orchestrator.errors import UserError
from orchestrator.search.build import build_space
from orchestrator.search.space import SearchSpace

BASE = ModelConfig(embed_dim=24, mlp_ratio=1.0, num_heads=2)
TRAIN = TrainConfig()

CHOICES: dict[str, list[Any]] = {
    "num_heads": [1, 2, 3, 5, 8],
    "depth": [1, 2, 3],
    "num_conv_blocks": [0, 1, 2, 3],
    "conv_kind": ["conv3x3", "residual", "depthwise"],
    "mlp_ratio": [0.5, 1.0],
    "num_tokenizer_convs": [1, 2],
    "tokenizer_dim": [8, 16],
    "drop_path": [0.0, 0.3],
    "attention": ["auto", "sdpa"],
    "optimizer": ["sgd", "adamw"],
    "label_smoothing": [0.0, 0.1],
    "warmup_epochs": [0.0, 3.0, 30.0],
}

spaces = st.lists(st.sampled_from(sorted(CHOICES)), min_size=1, max_size=4, unique=True).flatmap(
    lambda names: st.fixed_dictionaries(
        {name: st.lists(st.sampled_from(CHOICES[name]), min_size=1, unique=True) for name in names}
    )
)


def brute_force(space: dict[str, list[Any]]) -> set[tuple[ModelConfig, TrainConfig]]:
    """Every distinct valid configuration, by trying all combinations."""
    found = set()
    for values in itertools.product(*space.values()):
        point = dict(zip(space, values, strict=True))
        model = {name: value for name, value in point.items() if name in ModelConfig.model_fields}
        train = {name: value for name, value in point.items() if name not in model}
        merged = BASE.model_dump() | model
        if merged["num_conv_blocks"] == merged["depth"]:
            merged["num_heads"] = 1  # of no effect, so it need not divide
        try:
            found.add((ModelConfig(**merged).canonical(), TrainConfig.model_validate(TRAIN.model_dump() | train)))
        except ValueError:
            continue
    return found


def built(space: SearchSpace) -> list[tuple[ModelConfig, TrainConfig]]:
    return [(model.canonical(), train) for model, train in map(space.build, space.points)]


@settings(max_examples=60, deadline=None)
@given(spaces)
def test_points_are_the_distinct_valid_combinations(dimensions: dict[str, list[Any]]) -> None:
    expected = brute_force(dimensions)
    if not expected:
        with pytest.raises(UserError, match="space: must contain a valid configuration"):
            SearchSpace(dimensions, BASE, TRAIN)
        return
    found = built(SearchSpace(dimensions, BASE, TRAIN))
    assert len(found) == len(expected)
    assert set(found) == expected


@settings(max_examples=40, deadline=None)
@given(spaces.filter(brute_force), st.data())
def test_nearest_is_valid_and_new_until_nothing_is_left(dimensions: dict[str, list[Any]], data: st.DataObject) -> None:
    space = SearchSpace(dimensions, BASE, TRAIN)
    rng = np.random.default_rng(0)
    valid = {space.key(point) for point in space.points}
    visited: set[Any] = set()
    for _ in range(len(valid)):
        values = {name: data.draw(st.sampled_from(choices)) for name, choices in dimensions.items()}
        proposed = space.canonical(values)
        nearest = space.nearest(values, visited=visited, rng=rng)
        assert nearest is not None
        assert space.key(nearest) in valid - visited
        if space.key(proposed) in valid - visited:
            assert nearest == proposed
        visited.add(space.key(nearest))
    assert space.nearest(values, visited=visited, rng=rng) is None


def test_nearest_counts_ranks() -> None:
    space = SearchSpace({"num_heads": [1, 2, 4, 8], "depth": IntRange(low=1, high=5)}, BASE, TRAIN)
    rng = np.random.default_rng(0)
    taken = {(4, 3)}
    # One rank of five depths is nearer than one of four head counts.
    assert space.nearest({"num_heads": 4, "depth": 3}, visited=taken, rng=rng) in (
        {"num_heads": 4, "depth": 2},
        {"num_heads": 4, "depth": 4},
    )
    taken |= {(4, 2), (4, 4)}
    assert space.nearest({"num_heads": 4, "depth": 3}, visited=taken, rng=rng) in (
        {"num_heads": 2, "depth": 3},
        {"num_heads": 8, "depth": 3},
    )


def test_nearest_leaves_continuous_values_alone() -> None:
    space = SearchSpace({"num_heads": [5, 8], "drop_path": FloatRange(low=0.0, high=0.5)}, BASE, TRAIN)
    nearest = space.nearest({"num_heads": 5, "drop_path": 0.21}, visited=set(), rng=np.random.default_rng(0))
    assert nearest == {"num_heads": 8, "drop_path": 0.21}


def test_nearest_gives_continuous_values_where_they_have_an_effect_and_only_there() -> None:
    dimensions = {"num_conv_blocks": [0, 3], "mlp_ratio": FloatRange(low=0.5, high=2.0)}
    space = SearchSpace(dimensions, BASE.model_copy(update={"depth": 3}), TRAIN)
    rng = np.random.default_rng(0)
    plain_cnn = {"num_conv_blocks": 3, "mlp_ratio": 1.5}
    assert space.nearest(plain_cnn, visited=set(), rng=rng) == {"num_conv_blocks": 3, "mlp_ratio": None}
    assert space.nearest(plain_cnn, visited={(3, None)}, rng=rng) == {"num_conv_blocks": 0, "mlp_ratio": 1.5}
    transformer = {"num_conv_blocks": 0, "mlp_ratio": 1.5}
    assert space.nearest(transformer, visited={(0, 1.5)}, rng=rng) == {"num_conv_blocks": 3, "mlp_ratio": None}
    assert space.nearest(transformer, visited={(0, 1.5), (3, None)}, rng=rng) is None


def test_a_continuous_dimension_without_any_effect_leaves_the_space_finite() -> None:
    dropout = FloatRange(low=0.0, high=0.5)
    base = BASE.model_copy(update={"depth": 2})
    assert SearchSpace({"num_conv_blocks": [2], "attn_drop": dropout}, base, TRAIN).is_finite
    assert not SearchSpace({"num_conv_blocks": [1, 2], "attn_drop": dropout}, base, TRAIN).is_finite
    assert not SearchSpace({"num_conv_blocks": [2], "label_smoothing": dropout}, base, TRAIN).is_finite


def test_dimensions_without_effect_are_none() -> None:
    space = SearchSpace({"num_heads": [1, 2], "num_conv_blocks": [0, 3], "conv_kind": ["conv3x3", "residual"]},
                        ModelConfig(embed_dim=24, depth=3, num_heads=1), TRAIN)  # fmt: skip
    assert sorted(map(str, map(space.key, space.points))) == sorted(
        map(str, [(1, 0, None), (2, 0, None), (None, 3, "conv3x3"), (None, 3, "residual")])
    )


@settings(max_examples=40, deadline=None)
@given(spaces.filter(brute_force))
def test_encoding_is_undone_by_decoding(dimensions: dict[str, list[Any]]) -> None:
    space = SearchSpace(dimensions, BASE, TRAIN)
    inactive = dict.fromkeys(dimensions, 0)
    for point in space.points:
        params = space.encode(point, inactive=inactive)
        assert space.canonical(space.decode(params)) == point
        assert all(space.distributions[name]._contains(value) for name, value in params.items())


@pytest.mark.parametrize("file", SEARCH_SPACES, ids=lambda file: file.stem)
def test_every_point_of_a_shipped_space_is_valid_and_distinct(file: Path) -> None:
    space = build_space(load_sweep_config(file))
    found = built(space)
    assert len(set(found)) == len(found) == len(space.points)


def test_no_head_count_divides() -> None:
    with pytest.raises(UserError, match=r"num_heads must divide embed_dim, but got num_heads=5, embed_dim=24"):
        SearchSpace({"num_heads": [5, 7]}, BASE, TRAIN)


def test_too_many_combinations() -> None:
    with pytest.raises(UserError, match=r"at most 200,000 combinations .* but got 1,000,000"):
        SearchSpace({"batch_size": IntRange(low=1, high=1000), "embed_dim": IntRange(low=1, high=1000)}, BASE, TRAIN)


def test_a_count_too_large_to_enumerate() -> None:
    with pytest.raises(UserError, match="at most 200,000 combinations"):
        SearchSpace({"batch_size": IntRange(low=1, high=10**30)}, BASE, TRAIN)
