"""ModelConfig: what it refuses, what it derives, and which configurations are one network."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from lsmha.config import ModelConfig
from lsmha.models import CCT, create_model

SMALL: dict[str, Any] = {"img_size": 8, "num_classes": 3, "embed_dim": 8, "depth": 2, "num_heads": 2}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("img_size", 3),
        ("img_size", 1025),
        ("img_size", 32.5),
        ("img_size", "32"),
        ("img_size", True),
        ("img_size", None),
        ("in_channels", 0),
        ("in_channels", 17),
        ("num_classes", 1),
        ("embed_dim", 0),
        ("embed_dim", -8),
        ("depth", 0),
        ("depth", 65),
        ("num_heads", 0),
        ("num_heads", 3),
        ("num_heads", 16),
        ("mlp_ratio", 0.0),
        ("mlp_ratio", 0.1),
        ("mlp_ratio", 16.5),
        ("mlp_ratio", float("inf")),
        ("kernel_size", 0),
        ("kernel_size", 4),
        ("kernel_size", 17),
        ("num_tokenizer_convs", 0),
        ("num_tokenizer_convs", 5),
        ("tokenizer_dim", 0),
        ("positional_embedding", "sin"),
        ("num_conv_blocks", -1),
        ("num_conv_blocks", 3),
        ("conv_kind", "conv5x5"),
        ("drop_path", 1.0),
        ("drop_path", -0.1),
        ("drop_path", float("nan")),
        ("attn_drop", 1.0),
        ("attention", "flash"),
        ("head_dim", 4),
    ],
)
def test_bad_value_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field) as caught:
        ModelConfig.model_validate({**SMALL, field: value})
    assert str(value) in str(caught.value)


@pytest.mark.parametrize("overrides", [{"num_heads": 3}, {"num_conv_blocks": 9}, {"no_such_field": 1}])
def test_overrides_of_a_variant_are_checked(overrides: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(overrides))):
        create_model("cct_2_3x2_32", **overrides)


def test_unknown_variant_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"model must be one of .*cct_2_3x2_32.* but got 'cct_3'"):
        create_model("cct_3")


def test_configuration_is_immutable_and_hashable() -> None:
    config = ModelConfig(**SMALL)
    with pytest.raises(ValueError, match="depth"):
        config.depth = 5  # type: ignore[misc]
    assert len({config, ModelConfig(**SMALL), ModelConfig(**{**SMALL, "depth": 3})}) == 2


@pytest.mark.parametrize(("embed_dim", "mlp_ratio", "mlp_dim"), [(64, 1.0, 64), (100, 0.29, 29), (65, 1.5, 97)])
def test_mlp_width_is_the_product_rounded_down(embed_dim: int, mlp_ratio: float, mlp_dim: int) -> None:
    config = ModelConfig(embed_dim=embed_dim, num_heads=1, mlp_ratio=mlp_ratio)
    assert config.mlp_dim == mlp_dim


def test_mlp_width_survives_division_by_embed_dim() -> None:
    for embed_dim in (11, 49, 112, 176, 256):
        for mlp_dim in range(1, 2 * embed_dim + 1):
            config = ModelConfig(embed_dim=embed_dim, num_heads=1, mlp_ratio=mlp_dim / embed_dim)
            assert config.mlp_dim == mlp_dim


@pytest.mark.parametrize("img_size", [4, 31, 32, 224])
def test_number_of_tokens_is_what_the_tokenizer_makes(img_size: int) -> None:
    for kernel_size, convs in product((1, 3, 5, 7, 15), (1, 2, 4)):
        config = ModelConfig(
            **{**SMALL, "img_size": img_size}, kernel_size=kernel_size, num_tokenizer_convs=convs, tokenizer_dim=2
        )
        with torch.device("meta"):
            tokens = CCT(config).tokenizer(torch.empty(1, 3, img_size, img_size))
        assert tokens.shape == (1, config.num_tokens, config.embed_dim)


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({}, {"conv_kind": "depthwise"}),
        ({}, {"tokenizer_dim": 7}),
        ({"num_conv_blocks": 2}, {"num_heads": 8}),
        ({"num_conv_blocks": 2}, {"mlp_ratio": 3.0}),
        ({"num_conv_blocks": 2}, {"attn_drop": 0.3}),
        ({"num_conv_blocks": 2}, {"attention": "sdpa"}),
        ({"num_conv_blocks": 2}, {"positional_embedding": "sine"}),
        ({"num_conv_blocks": 2}, {"drop_path": 0.3}),
    ],
)
def test_settings_without_effect_make_no_other_network(base: dict[str, Any], change: dict[str, Any]) -> None:
    one, other = ModelConfig(**{**SMALL, **base}), ModelConfig(**{**SMALL, **base, **change})
    assert one != other
    assert one.canonical() == other.canonical()
    images = torch.rand(2, 3, 8, 8)
    logits = [_train_logits(config, images) for config in (one, other, one.canonical())]
    assert torch.equal(logits[0], logits[1])
    assert torch.equal(logits[0], logits[2])


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({}, {"num_heads": 4}),
        ({}, {"mlp_ratio": 3.0}),
        ({}, {"attn_drop": 0.3}),
        ({}, {"drop_path": 0.3}),
        ({}, {"positional_embedding": "sine"}),
        ({"num_tokenizer_convs": 2}, {"tokenizer_dim": 7}),
        ({"num_conv_blocks": 1}, {"conv_kind": "residual"}),
        ({"num_conv_blocks": 1}, {"num_heads": 4}),
        ({"num_conv_blocks": 1}, {"positional_embedding": "none"}),
        ({"num_conv_blocks": 2, "conv_kind": "residual"}, {"drop_path": 0.3}),
        ({"num_conv_blocks": 1}, {"num_conv_blocks": 2}),
    ],
)
def test_settings_with_effect_make_another_network(base: dict[str, Any], change: dict[str, Any]) -> None:
    one, other = ModelConfig(**{**SMALL, **base}), ModelConfig(**{**SMALL, **base, **change})
    assert one.canonical() != other.canonical()


@pytest.mark.parametrize("num_conv_blocks", [0, 1, 2])
def test_canonical_is_valid_and_a_fixed_point(num_conv_blocks: int) -> None:
    config = ModelConfig(**SMALL, num_conv_blocks=num_conv_blocks, conv_kind="depthwise", attention="sdpa")
    canonical = config.canonical()
    assert ModelConfig.model_validate(canonical.model_dump()) == canonical
    assert canonical.canonical() == canonical


def _train_logits(config: ModelConfig, images: torch.Tensor) -> torch.Tensor:
    """Logits in train mode, dropout and stochastic depth included, from the same random state every time."""
    torch.manual_seed(0)
    return CCT(config).train()(images)
