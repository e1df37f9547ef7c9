"""The learning-rate schedule, and which parameters an optimizer decays."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from tiny_data import tiny_model, tiny_recipe
from torch import nn

from lsmha.models import CCT
from lsmha.training.optimization import build_optimizer, learning_rate_at


def _schedule(steps_per_epoch: int, **settings: Any) -> list[float]:
    """Learning rates of all the steps, and of the one after the last."""
    config = tiny_recipe(**settings)
    total = config.epochs * steps_per_epoch
    return [
        learning_rate_at(step, total_steps=total, steps_per_epoch=steps_per_epoch, config=config)
        for step in range(total + 1)
    ]


def test_known_points_of_warmup_and_cosine() -> None:
    rates = _schedule(4, epochs=5, warmup_epochs=1.0, learning_rate=0.8, min_lr_ratio=0.25)
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])  # linear from 0, at the peak with the last warm-up step
    assert rates[4] == pytest.approx(0.8)
    # A quarter, half and three quarters along the cosine from 0.8 to 0.2.
    assert rates[8] == pytest.approx(0.5 + 0.3 * math.sqrt(0.5))
    assert rates[12] == pytest.approx(0.5)
    assert rates[16] == pytest.approx(0.5 - 0.3 * math.sqrt(0.5))
    assert rates[20] == pytest.approx(0.2)


def test_without_warmup_the_first_step_is_at_the_peak() -> None:
    rates = _schedule(3, epochs=4, warmup_epochs=0.0, learning_rate=0.1)
    assert rates[0] == pytest.approx(0.1)
    assert rates[6] == pytest.approx(0.05)
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)
    assert rates[-2] > 0.0  # the last step still counts


@pytest.mark.parametrize("warmup_epochs", [0.0, 0.5, 1.0, 2.7, 10.0])
@pytest.mark.parametrize("min_lr_ratio", [0.0, 0.1, 1.0])
def test_rises_then_falls_between_the_bounds(warmup_epochs: float, min_lr_ratio: float) -> None:
    rates = _schedule(7, epochs=10, warmup_epochs=warmup_epochs, min_lr_ratio=min_lr_ratio, learning_rate=0.3)[:-1]
    warmup = round(warmup_epochs * 7)
    rising, falling = rates[:warmup], rates[warmup:]
    assert all(before < two for before, two in pairwise(rising))
    assert all(before >= two for before, two in pairwise(falling))
    assert max(rates) == pytest.approx(0.3)
    assert min(rates) > 0.0
    assert all(rate >= 0.3 * min_lr_ratio - 1e-12 for rate in falling)


def test_warmup_over_the_whole_run_ends_at_the_peak() -> None:
    rates = _schedule(3, epochs=2, warmup_epochs=2.0, learning_rate=0.6)
    assert rates[:6] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


def test_full_min_lr_ratio_is_a_constant() -> None:
    assert set(_schedule(3, epochs=4, min_lr_ratio=1.0, learning_rate=0.25)) == {0.25}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("positional_embedding", ["learnable", "sine", "none"])
@pytest.mark.parametrize("num_conv_blocks", [0, 1, 3])
def test_every_parameter_is_in_one_group_and_only_matrices_and_kernels_decay(
    optimizer: str, positional_embedding: str, num_conv_blocks: int
) -> None:
    model = CCT(
        tiny_model(
            depth=3,
            num_conv_blocks=num_conv_blocks,
            positional_embedding=positional_embedding,
            conv_kind="depthwise",
            num_tokenizer_convs=2,
        )
    )
    groups = build_optimizer(model.named_parameters(), tiny_recipe(optimizer=optimizer, weight_decay=0.3)).param_groups
    decay_of: dict[int, float] = {}
    for group in groups:
        for parameter in group["params"]:
            assert id(parameter) not in decay_of, "a parameter is in two groups"
            decay_of[id(parameter)] = group["weight_decay"]
    # By the kind of module, where `build_optimizer` goes by shape and name.
    matrices = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv1d)
    }
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = {id(parameter): 0.3 if id(parameter) in matrices else 0.0 for parameter in trainable}
    assert decay_of == expected
    assert len(matrices) > 3


def test_frozen_parameters_are_left_out() -> None:
    model = CCT(tiny_model())
    model.head.requires_grad_(False)
    groups = build_optimizer(model.named_parameters(), tiny_recipe()).param_groups
    optimized = {id(parameter) for group in groups for parameter in group["params"]}
    assert optimized == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    model.requires_grad_(False)
    model.head.weight.requires_grad_(True)  # one group alone
    assert [
        len(group["params"]) for group in build_optimizer(model.named_parameters(), tiny_recipe()).param_groups
    ] == [1]


def test_optimizers_follow_the_recipe() -> None:
    model = CCT(tiny_model())
    adamw = build_optimizer(model.named_parameters(), tiny_recipe(optimizer="adamw", learning_rate=0.2))
    assert type(adamw) is torch.optim.AdamW
    assert {group["lr"] for group in adamw.param_groups} == {0.2}
    sgd = build_optimizer(model.named_parameters(), tiny_recipe(optimizer="sgd", momentum=0.7))
    assert type(sgd) is torch.optim.SGD
    assert {(group["momentum"], group["nesterov"]) for group in sgd.param_groups} == {(0.7, True)}
    plain = build_optimizer(model.named_parameters(), tiny_recipe(optimizer="sgd", momentum=0.0))
    assert {(group["momentum"], group["nesterov"]) for group in plain.param_groups} == {(0.0, False)}
