"""Attention heads: they add up to the layer, every kernel gives the same, and masks silence them."""

from __future__ import annotations

from typing import Any, Literal, get_args

import pytest
import torch
from torch import Tensor

from lsmha.config import AttentionKernel, ModelConfig
from lsmha.models import CCT
from lsmha.models.attention import (
    AttentionKernels,
    MultiHeadAttention,
    attend,
    default_kernels,
    head_contributions,
    kernel_name,
)

EMBED_DIM = 16
HEAD_COUNTS = (1, 2, 4, 8, 16)
KERNELS: tuple[AttentionKernel, ...] = get_args(AttentionKernel)


def _layer(num_heads: int, attention: str) -> MultiHeadAttention:
    torch.manual_seed(0)
    layer = MultiHeadAttention(EMBED_DIM, num_heads, attn_drop=0.1, attention=attention)
    torch.nn.init.normal_(layer.qkv.weight, std=0.5)  # far from uniform attention
    return layer.eval()


def _tokens() -> Tensor:
    return torch.randn(3, 9, EMBED_DIM, generator=torch.Generator().manual_seed(1))


def _model(**settings: Any) -> CCT:
    torch.manual_seed(0)
    return CCT(ModelConfig(img_size=8, num_classes=3, embed_dim=EMBED_DIM, depth=3, num_heads=4, **settings)).eval()


def _images() -> Tensor:
    return torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("attention", KERNELS)
@pytest.mark.parametrize("num_heads", HEAD_COUNTS)
def test_projected_heads_and_bias_sum_to_the_layer(num_heads: int, attention: str) -> None:
    layer = _layer(num_heads, attention)
    torch.nn.init.normal_(layer.proj.bias)
    with torch.no_grad():
        output, head_outputs = layer(_tokens())
        contributions = head_contributions(layer, head_outputs)
    assert head_outputs.shape == (3, num_heads, 9, EMBED_DIM // num_heads)
    assert contributions.shape == (3, num_heads, 9, EMBED_DIM)
    torch.testing.assert_close(contributions.sum(dim=1) + layer.proj.bias, output, atol=1e-5, rtol=0)


@pytest.mark.parametrize("num_heads", HEAD_COUNTS)
def test_kernels_agree_with_attention_written_out(num_heads: int) -> None:
    tokens, head_dim = _tokens(), EMBED_DIM // num_heads
    layer = _layer(num_heads, "sdpa")
    query, key, value = layer.qkv.weight.split(EMBED_DIM)
    expected = []
    for head in range(num_heads):
        rows = slice(head * head_dim, (head + 1) * head_dim)
        q, k, v = (tokens @ matrix[rows].T for matrix in (query, key, value))
        expected.append(torch.softmax(q @ k.transpose(1, 2) / head_dim**0.5, dim=-1) @ v)
    for kernel in KERNELS:
        head_outputs = _layer(num_heads, kernel).head_outputs(tokens)
        torch.testing.assert_close(head_outputs, torch.stack(expected, dim=1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("attention", KERNELS)
def test_attention_dropout_acts_in_training_only(attention: str) -> None:
    tokens = _tokens()
    layer = _layer(4, attention)
    layer.attn_drop = 0.5
    without = layer.head_outputs(tokens)
    torch.testing.assert_close(layer.head_outputs(tokens), without)
    layer.train()
    samples = torch.stack([layer.head_outputs(tokens) for _ in range(1500)])
    assert not torch.equal(samples[0], samples[1])
    # Dropped weights are made up for by the others: the mean stays. Tolerance: 6 standard errors of the mean.
    error = (samples.mean(dim=0) - without).abs() / (samples.std(dim=0) / len(samples) ** 0.5 + 1e-6)
    assert error.max() < 6


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("head_dim", [1, 2, 3, 4, 8, 12, 32])
def test_every_kernel_has_the_formula_and_its_gradient(
    kernel: AttentionKernel, head_dim: int, dtype: torch.dtype, tolerance: float
) -> None:
    generator = torch.Generator().manual_seed(head_dim)
    inputs = [torch.randn(2, 3, 7, head_dim, generator=generator).to(dtype) for _ in range(3)]
    upstream = torch.randn(2, 3, 7, head_dim, generator=generator)

    def outputs_and_gradients(compute: Any, *values: Tensor) -> list[Tensor]:
        leaves = [value.clone().requires_grad_() for value in values]
        outputs = compute(*leaves)
        return [outputs, *torch.autograd.grad((outputs * upstream.to(outputs.dtype)).sum(), leaves)]

    def formula(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return torch.softmax(query @ key.mT / head_dim**0.5, dim=-1) @ value

    found = outputs_and_gradients(lambda *qkv: attend(*qkv, kernel), *inputs)
    expected = outputs_and_gradients(formula, *(tensor.double() for tensor in inputs))
    for ours, other in zip(found, expected, strict=True):
        assert ours.dtype == dtype
        torch.testing.assert_close(ours.double(), other, atol=tolerance, rtol=tolerance)


def test_kernels_are_those_of_the_setting_or_chosen_or_the_default() -> None:
    chosen = AttentionKernels("sdpa", "materialized")
    for setting in KERNELS:
        model = _model(attention=setting)
        model.use_kernels(chosen)  # a setting is no choice
        assert _kernels_of(model) == {AttentionKernels(setting, setting)}
    model = _model()
    assert _kernels_of(model) == {None}
    model.use_kernels(chosen)
    assert _kernels_of(model) == {chosen}
    assert default_kernels("cpu") == ("materialized", "sdpa")
    assert default_kernels("cuda") == ("sdpa", "sdpa")


def _kernels_of(model: CCT) -> set[AttentionKernels | None]:
    return {layer.kernels for layer in model.modules() if isinstance(layer, MultiHeadAttention)}


def test_phases_have_their_own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []

    def noted(query: Tensor, key: Tensor, value: Tensor, kernel: AttentionKernel, *, dropout: float) -> Tensor:
        used.append(kernel)
        return attend(query, key, value, kernel, dropout=dropout)

    monkeypatch.setattr("lsmha.models.attention.attend", noted)
    model = _model(num_conv_blocks=2)
    for kernels, expected in (
        (None, ["sdpa", "materialized"]),
        (AttentionKernels("sdpa-padded", "materialized"), ["materialized", "sdpa-padded"]),
    ):
        if kernels is not None:
            model.use_kernels(kernels)
        used.clear()
        model.eval()(_images())
        model.train()(_images())
        assert used == expected


def test_a_kernel_is_named_with_what_torch_runs() -> None:
    query = torch.randn(1, 4, 9, 2)
    assert kernel_name("materialized", query) == "materialized"
    assert kernel_name("sdpa", query) == "sdpa (flash)"  # on CPUs, for any head_dim
    assert kernel_name("sdpa-padded", query) == "sdpa-padded (flash)"
    assert kernel_name("sdpa-fp32", query.bfloat16()) == "sdpa-fp32 (flash)"


def test_float32_attention_is_so_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    types: list[torch.dtype] = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def noted(query: Tensor, *rest: Any, **settings: Any) -> Tensor:
        types.append(query.dtype)
        output = fused(query, *rest, **settings)
        types.append(output.dtype)
        return output

    monkeypatch.setattr("lsmha.models.attention.F.scaled_dot_product_attention", noted)
    query, key, value = torch.randn(3, 2, 4, 9, 2).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attend(query, key, value, "sdpa-fp32").dtype == torch.bfloat16
    assert types == [torch.float32, torch.float32]


def test_full_mask_changes_nothing() -> None:
    model, images = _model(), _images()
    with torch.no_grad():
        masked, free = model.forward_heads(images, torch.ones(3, 4)), model.forward_heads(images)
    assert torch.equal(masked.logits, free.logits)
    for ours, other in zip(masked.head_outputs, free.head_outputs, strict=True):
        assert ours is not None
        assert other is not None
        assert torch.equal(ours, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
@pytest.mark.parametrize(("block", "head"), [(0, 0), (1, 3), (2, 2)])
def test_silencing_a_head_is_zeroing_its_projection(block: int, head: int, dtype: torch.dtype) -> None:
    model, images = _model(), _images()
    mask = torch.ones(3, 4, dtype=dtype)
    mask[block, head] = 0
    with torch.no_grad():
        free, silenced = model(images), model(images, mask)
        head_dim = model.config.head_dim
        layer = model.get_submodule(f"blocks.{block}.attn")
        assert isinstance(layer, MultiHeadAttention)
        layer.proj.weight[:, head * head_dim : (head + 1) * head_dim] = 0
        torch.testing.assert_close(silenced, model(images), atol=1e-6, rtol=0)
    assert (silenced - free).abs().max() > 1e-4


def test_mask_scales_head_outputs() -> None:
    layer, tokens = _layer(4, "sdpa"), _tokens()
    mask = torch.tensor([1.0, 0.5, 0.0, -1.0])
    _, head_outputs = layer(tokens, mask)
    torch.testing.assert_close(head_outputs, layer.head_outputs(tokens) * mask[:, None, None])


@pytest.mark.parametrize("shape", [(4,), (3,), (2, 4), (4, 3), (3, 1), (1, 3, 4)])
@pytest.mark.parametrize("num_conv_blocks", [0, 3])
def test_mask_of_another_shape_is_refused(shape: tuple[int, ...], num_conv_blocks: int) -> None:
    model = _model(num_conv_blocks=num_conv_blocks)
    with pytest.raises(ValueError, match=r"head_mask must have shape .* \(3, 4\), but got \(") as caught:
        model(_images(), torch.ones(shape))
    assert str(shape) in str(caught.value)


def test_mask_rows_of_conv_blocks_have_no_effect() -> None:
    model, images = _model(num_conv_blocks=2), _images()
    mask = torch.ones(3, 4)
    mask[:2] = 0
    with torch.no_grad():
        assert torch.equal(model(images, mask), model(images))


@pytest.mark.parametrize("num_conv_blocks", [0, 1, 3])
@pytest.mark.parametrize("conv_kind", ["conv3x3", "residual", "depthwise"])
def test_head_outputs_are_those_of_transformer_blocks(
    num_conv_blocks: int, conv_kind: Literal["conv3x3", "residual", "depthwise"]
) -> None:
    model = _model(num_conv_blocks=num_conv_blocks, conv_kind=conv_kind)
    output = model.forward_heads(_images())
    shapes = [None if heads is None else tuple(heads.shape) for heads in output.head_outputs]
    assert shapes == [None] * num_conv_blocks + [(2, 4, 16, 4)] * (3 - num_conv_blocks)
    assert output.logits.shape == (2, 3)
