"""Parameters and multiply-accumulates against formulas worked out by hand and against published numbers."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch

from lsmha.config import ModelConfig
from lsmha.models import CCT, VARIANTS, model_cost


def _side_by_hand(config: ModelConfig) -> list[int]:
    """Side of the grid after each convolution of the tokenizer, kernels as listed; pooling halves it, rounded up."""
    stride, shrink = {1: (1, -2), 3: (1, 0), 7: (2, 0)}[config.kernel_size]
    sides, side = [], config.img_size
    for _ in range(config.num_tokenizer_convs):
        side = -(-(side - shrink) // stride)
        sides.append(side)
        side = -(-side // 2)
    return sides


def _cost_by_hand(config: ModelConfig) -> tuple[int, int]:
    sides = _side_by_hand(config)
    tokens = (-(-sides[-1] // 2)) ** 2
    width, hidden = config.embed_dim, int(config.embed_dim * config.mlp_ratio)
    channels = [config.in_channels, *[config.tokenizer_dim] * (config.num_tokenizer_convs - 1), width]
    kernels = [config.kernel_size**2 * a * b for a, b in pairwise(channels)]
    params = sum(kernels)
    macs = sum(kernel * side**2 for kernel, side in zip(kernels, sides, strict=True))

    conv_params, conv_macs = {
        "conv3x3": (9 * width**2 + 2 * width, 9 * width**2 * tokens),
        "residual": (9 * width**2 + 2 * width, 9 * width**2 * tokens),
        "depthwise": (9 * width + 2 * width + width**2 + 2 * width, (9 * width + width**2) * tokens),
    }[config.conv_kind]
    params += config.num_conv_blocks * conv_params
    macs += config.num_conv_blocks * conv_macs

    transformer_blocks = config.depth - config.num_conv_blocks
    attention_params = 3 * width**2 + width**2 + width
    mlp_params = 2 * width * hidden + hidden + width
    params += transformer_blocks * (attention_params + mlp_params + 2 * 2 * width)
    macs += transformer_blocks * (
        tokens * 4 * width**2  # qkv and projection
        + 2 * tokens**2 * width  # scores, and their average of the values
        + tokens * 2 * width * hidden
    )
    if config.positional_embedding == "learnable" and transformer_blocks:
        params += tokens * width

    params += 2 * width + (width + 1) + (width + 1) * config.num_classes  # norm, pooling, classifier
    macs += 2 * tokens * width + width * config.num_classes
    return params, macs


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_variant_costs_what_the_formula_says(name: str) -> None:
    assert model_cost(VARIANTS[name]) == _cost_by_hand(VARIANTS[name])


@pytest.mark.parametrize("conv_kind", ["conv3x3", "residual", "depthwise"])
@pytest.mark.parametrize("num_conv_blocks", [0, 1, 3])
@pytest.mark.parametrize("attention", ["auto", "sdpa", "materialized"])
def test_hybrid_costs_what_the_formula_says(conv_kind: Any, num_conv_blocks: int, attention: Any) -> None:
    config = ModelConfig(
        img_size=15,
        in_channels=2,
        num_classes=7,
        embed_dim=24,
        depth=3,
        num_heads=6,
        mlp_ratio=1.5,
        num_tokenizer_convs=2,
        tokenizer_dim=10,
        conv_kind=conv_kind,
        num_conv_blocks=num_conv_blocks,
        attention=attention,
    )
    assert model_cost(config) == _cost_by_hand(config)


# Millions of parameters, and G multiply-accumulates, of the README of github.com/SHI-Labs/Compact-Transformers; its
# MACs leave out the products inside attention, and its count for 6/3x1 is that without the positional embedding.
@pytest.mark.parametrize(
    ("name", "published_params", "published_macs"),
    [
        ("cct_2_3x2_32", 0.284, 0.033),
        ("cct_4_3x2_32", 0.482, 0.046),
        ("cct_6_3x1_32_sine", 3.168, 0.813),
        ("cct_6_3x2_32", 3.327, 0.241),
        ("cct_7_3x1_32", 3.760, 0.947),
        ("cct_7_3x2_32", 3.853, 0.275),
    ],
)
def test_published_counts(name: str, published_params: float, published_macs: float) -> None:
    config = VARIANTS[name]
    cost = model_cost(config)
    inside_attention = config.depth * 2 * config.num_tokens**2 * config.embed_dim
    assert cost.params / 1e6 == pytest.approx(published_params, abs=0.0006)
    assert (cost.macs - inside_attention) / 1e9 == pytest.approx(published_macs, abs=0.0006)


@pytest.mark.parametrize("num_heads", [1, 8, 256])
def test_cost_does_not_depend_on_the_head_count(num_heads: int) -> None:
    assert model_cost(ModelConfig(num_heads=num_heads)) == model_cost(ModelConfig())


def test_parameters_are_those_of_the_built_model() -> None:
    config = ModelConfig(img_size=8, embed_dim=8, depth=2, num_conv_blocks=1, positional_embedding="sine")
    assert model_cost(config).params == sum(parameter.numel() for parameter in CCT(config).parameters())


def test_counting_leaves_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    model_cost(ModelConfig(img_size=12, num_classes=3))
    assert torch.equal(torch.get_rng_state(), state)
