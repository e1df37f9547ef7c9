"""Parity with the published CCT: its own outputs, an independent implementation, and loading its weights."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
import torch
from published_names import to_published_key
from repository import FIXTURES
from torch import Tensor
from vit_pytorch.cct import sinusoidal_embedding

from lsmha.bench.baselines import vit_pytorch_cct
from lsmha.config import AttentionKernel, ModelConfig
from lsmha.models import CCT, create_model, from_compact_transformers
from lsmha.models.attention import AttentionKernels
from lsmha.models.tokenizer import sine_embedding

# Weights, images and logits of the published code: two blocks, two convolutions, width 64, 4 heads, 32x32 pixels.
FIXTURE = FIXTURES / "cct_2_3x2_32.npz"


def _fixture() -> tuple[dict[str, Tensor], Tensor, Tensor]:
    with np.load(FIXTURE) as arrays:
        tensors = {key: torch.from_numpy(arrays[key]) for key in arrays}
    weights = {key.removeprefix("param/"): value for key, value in tensors.items() if key.startswith("param/")}
    return weights, tensors["input"], tensors["logits"]


def _scatter(model: torch.nn.Module) -> None:
    """Move every weight from its initial value, so that no norm or bias is the identity; sine tables stay."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


def test_logits_of_the_published_code() -> None:
    weights, images, logits = _fixture()
    model = from_compact_transformers(weights, num_heads=4, img_size=32)
    for kernel in get_args(AttentionKernel):
        model.use_kernels(AttentionKernels(kernel, kernel))
        with torch.no_grad():
            torch.testing.assert_close(model(images), logits, atol=5e-6, rtol=0)


def test_logits_depend_on_the_head_count() -> None:
    weights, images, logits = _fixture()
    with torch.no_grad():
        others = [from_compact_transformers(weights, num_heads=heads, img_size=32)(images) for heads in (1, 2, 8, 64)]
    # Small, since the fixture's weights are fresh and attend almost evenly, but ten times what parity allows.
    assert all((other - logits).abs().max() > 5e-5 for other in others)


def test_configuration_is_read_off_the_weights() -> None:
    weights, _, _ = _fixture()
    model = from_compact_transformers(weights, num_heads=4, img_size=32)
    assert model.config == ModelConfig(
        img_size=32,
        num_classes=10,
        embed_dim=64,
        depth=2,
        num_heads=4,
        mlp_ratio=1.0,
        num_tokenizer_convs=2,
        tokenizer_dim=64,
        positional_embedding="learnable",
    )
    assert not model.training


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_heads": 16},
        {"positional_embedding": "sine"},
        {"positional_embedding": "none"},
        {"num_tokenizer_convs": 2, "tokenizer_dim": 64},
        {"num_tokenizer_convs": 2, "tokenizer_dim": 64, "kernel_size": 7, "img_size": 48, "mlp_ratio": 1.5},
        {"kernel_size": 1, "depth": 1},
        {"in_channels": 1, "kernel_size": 5, "depth": 3, "positional_embedding": "sine"},
    ],
)
def test_logits_of_vit_pytorch(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    config = ModelConfig(
        **{"img_size": 16, "num_classes": 5, "embed_dim": 16, "depth": 2, "num_heads": 4, "mlp_ratio": 2.0, **settings}
    )
    twin = vit_pytorch_cct(config).eval()
    _scatter(twin)
    theirs = twin.state_dict()
    model = CCT(config).eval()
    keys = {key: to_published_key(key) for key in model.state_dict()}
    assert sorted(keys.values()) == sorted(theirs)
    model.load_state_dict({ours: theirs[published] for ours, published in keys.items()})
    images = torch.rand(3, config.in_channels, config.img_size, config.img_size)
    with torch.no_grad():
        expected = twin(images)
        torch.testing.assert_close(model(images), expected, atol=1e-5, rtol=0)
        loaded = from_compact_transformers(theirs, num_heads=config.num_heads, img_size=config.img_size)
        torch.testing.assert_close(loaded(images), expected, atol=1e-5, rtol=0)
    assert loaded.config == config
    assert expected.std() > 0.01


@pytest.mark.parametrize(("num_tokens", "embed_dim"), [(1, 1), (9, 5), (64, 128), (256, 256)])
def test_sine_table_is_the_published_one(num_tokens: int, embed_dim: int) -> None:
    # The published table rounds its angles, up to num_tokens, to float32 before the sine.
    expected = sinusoidal_embedding(num_tokens, embed_dim)
    torch.testing.assert_close(sine_embedding(num_tokens, embed_dim), expected, atol=1e-5 + num_tokens * 6e-8, rtol=0)


def test_sine_table_is_no_parameter() -> None:
    model = create_model("cct_2_3x2_32_sine")
    assert "positional_embedding.weight" in model.state_dict()
    assert all("positional" not in name for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    "missing",
    [
        "tokenizer.conv_layers.0.0.weight",
        "classifier.positional_emb",
        "classifier.attention_pool.bias",
        "classifier.blocks.0.linear1.weight",
        "classifier.blocks.1.self_attn.qkv.weight",
        "classifier.norm.weight",
        "classifier.fc.weight",
    ],
)
def test_missing_weight_is_refused(missing: str) -> None:
    weights, _, _ = _fixture()
    del weights[missing]
    if missing == "classifier.positional_emb":
        # Published models without an embedding have no such weight either: this is a valid one of them.
        assert from_compact_transformers(weights, num_heads=4, img_size=32).config.positional_embedding == "none"
        return
    with pytest.raises(ValueError, match="state_dict"):
        from_compact_transformers(weights, num_heads=4, img_size=32)


@pytest.mark.parametrize("weights", [{}, {"epoch": torch.tensor(3)}, {"state_dict.norm.weight": torch.ones(4)}])
def test_foreign_state_dict_is_refused(weights: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="state_dict is not of a Compact-Transformers CCT"):
        from_compact_transformers(weights, num_heads=4, img_size=32)


def test_unknown_weight_is_refused_by_name() -> None:
    weights, _, _ = _fixture()
    weights["classifier.class_emb"] = torch.zeros(1, 1, 64)
    with pytest.raises(ValueError, match="class_emb"):
        from_compact_transformers(weights, num_heads=4, img_size=32)


@pytest.mark.parametrize("img_size", [28, 64])
def test_wrong_image_size_is_refused(img_size: int) -> None:
    weights, _, _ = _fixture()
    with pytest.raises(ValueError, match=rf"img_size={img_size}.*positional_embedding"):
        from_compact_transformers(weights, num_heads=4, img_size=img_size)


@pytest.mark.parametrize("num_heads", [0, 3, 128])
def test_head_count_that_does_not_divide_is_refused(num_heads: int) -> None:
    weights, _, _ = _fixture()
    with pytest.raises(ValueError, match=rf"num_heads[\s\S]*{num_heads}"):
        from_compact_transformers(weights, num_heads=num_heads, img_size=32)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("key", ["classifier.positional_emb", "classifier.fc.bias"])
def test_non_finite_weight_is_refused(key: str, bad: float) -> None:
    weights, _, _ = _fixture()
    weights[key] = weights[key].clone()
    weights[key].view(-1)[3] = bad
    with pytest.raises(ValueError, match=r"state_dict must hold finite weights, but .* has NaN or infinite ones"):
        from_compact_transformers(weights, num_heads=4, img_size=32)


@pytest.mark.parametrize("shape", [(1, 64, 32), (64, 64), (1, 63, 64), (64,)])
def test_positional_embedding_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    weights, _, _ = _fixture()
    weights["classifier.positional_emb"] = torch.zeros(shape)
    with pytest.raises(ValueError, match="state_dict"):
        from_compact_transformers(weights, num_heads=4, img_size=32)


def test_loading_leaves_the_weights_alone() -> None:
    weights, _, _ = _fixture()
    before = {key: value.clone() for key, value in weights.items()}
    model = from_compact_transformers(weights, num_heads=4, img_size=32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert all(torch.equal(weights[key], value) for key, value in before.items())
