"""Parameters and multiply-accumulates against what torch counts in the built network and against published numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from lsmha.config import ModelConfig
from lsmha.models import CCT, VARIANTS, model_cost


def _cost_of_built(config: ModelConfig) -> tuple[int, int]:
    """Counted by torch with materialized attention, the one form that its counter sees whole on every device."""
    with torch.device("meta"):
        model = CCT(config.model_copy(update={"attention": "materialized"})).eval()
        images = torch.empty(1, config.in_channels, config.img_size, config.img_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    return sum(parameter.numel() for parameter in model.parameters()), counter.get_total_flops() // 2


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_variant_costs_what_torch_counts(name: str) -> None:
    assert model_cost(VARIANTS[name]) == _cost_of_built(VARIANTS[name])


@given(
    img_size=st.integers(4, 40),
    in_channels=st.integers(1, 4),
    num_classes=st.integers(2, 7),
    head_dim=st.integers(1, 5),
    num_heads=st.integers(1, 4),
    blocks=st.tuples(st.integers(0, 2), st.integers(0, 2)).filter(any),
    mlp_ratio=st.floats(1, 3),
    kernel_size=st.sampled_from([1, 3, 5, 7, 11]),
    num_tokenizer_convs=st.integers(1, 3),
    tokenizer_dim=st.integers(1, 9),
    positional_embedding=st.sampled_from(["learnable", "sine", "none"]),
    conv_kind=st.sampled_from(["conv3x3", "residual", "depthwise"]),
)
@settings(deadline=None, max_examples=60)
def test_hybrid_costs_what_torch_counts(head_dim: int, blocks: tuple[int, int], **fields: Any) -> None:
    conv, transformer = blocks
    config = ModelConfig(
        embed_dim=head_dim * fields["num_heads"], depth=conv + transformer, num_conv_blocks=conv, **fields
    )
    assert model_cost(config) == _cost_of_built(config)


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
