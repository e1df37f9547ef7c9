"""The network as a whole: convolutional blocks, stochastic depth, gradients and the published variants."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lsmha.config import ModelConfig
from lsmha.models import CCT, VARIANTS, create_model
from lsmha.models.attention import MultiHeadAttention
from lsmha.models.blocks import ConvBlock, TransformerBlock
from lsmha.models.tokenizer import Tokenizer

CONV_KINDS = ("conv3x3", "residual", "depthwise")


def _config(**settings: Any) -> ModelConfig:
    return ModelConfig(
        **{"img_size": 8, "num_classes": 3, "embed_dim": 8, "depth": 3, "num_heads": 2, "mlp_ratio": 1.5, **settings}
    )


def _model(**settings: Any) -> CCT:
    torch.manual_seed(0)
    return CCT(_config(**settings))


def _images(batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_variant_builds_and_classifies(name: str) -> None:
    config = VARIANTS[name]
    with torch.device("meta"):
        model = create_model(name)
        images = torch.empty(2, 3, config.img_size, config.img_size)
    assert model.config == config
    assert model.eval()(images).shape == (2, config.num_classes)
    assert name.split("_")[1] == str(len(model.blocks))
    assert (config.positional_embedding == "sine") == ("_sine" in name)
    assert f"{config.kernel_size}x{config.num_tokenizer_convs}_{config.img_size}" in name


def test_default_configuration_is_cct_7_3x1_on_cifar100() -> None:
    assert VARIANTS["cct_7_3x1_32_c100"] == ModelConfig()


def test_model_comes_from_name_or_configuration_with_overrides() -> None:
    assert create_model("cct_2_3x2_32", num_heads=64).config.head_dim == 2
    assert create_model(_config(), depth=1).config == _config(depth=1)


def test_the_residual_stream_keeps_the_type_of_autocast() -> None:
    model = _model(num_conv_blocks=1, conv_kind="residual")
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda _block, inputs, _outputs: seen.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(_images())
    assert seen == [torch.bfloat16] * 3


def test_tokens_and_gradients_are_those_of_relu_before_the_pool() -> None:
    """The published order, from which the tokenizer departs for speed; zeros and ties included."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(_config(num_tokenizer_convs=2, tokenizer_dim=6))
    images = torch.randint(0, 3, (4, 3, 8, 8)).float() / 2
    published = images
    for conv, pool, relu in tokenizer.conv_layers:
        published = pool(torch.relu(conv(published)))
        assert isinstance(relu, nn.ReLU)
    expected = published.permute(0, 2, 3, 1).flatten(1, 2)
    tokens = tokenizer(images)
    assert (tokens == 0).any()
    assert torch.equal(tokens, expected)
    weights = list(tokenizer.parameters())
    ours, theirs = (torch.autograd.grad((output * output).sum(), weights) for output in (tokens, expected))
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("conv_kind", CONV_KINDS)
@pytest.mark.parametrize("num_conv_blocks", [0, 1, 2, 3])
def test_first_blocks_are_convolutional(conv_kind: str, num_conv_blocks: int) -> None:
    model = _model(conv_kind=conv_kind, num_conv_blocks=num_conv_blocks)
    kinds = [type(block) for block in model.blocks]
    assert kinds == [ConvBlock] * num_conv_blocks + [TransformerBlock] * (3 - num_conv_blocks)
    assert model(_images()).shape == (2, 3)


@pytest.mark.parametrize("conv_kind", CONV_KINDS)
def test_plain_cnn_has_no_attention_and_no_positional_embedding(conv_kind: str) -> None:
    model = _model(conv_kind=conv_kind, num_conv_blocks=3)
    assert not any(isinstance(module, MultiHeadAttention) for module in model.modules())
    names = [name for name, _ in model.named_parameters()]
    assert not [name for name in names if {"attn", "qkv", "proj"} & set(name.split("."))]
    assert not [name for name in model.state_dict() if "positional" in name]


@pytest.mark.parametrize("conv_kind", CONV_KINDS)
def test_conv_block_keeps_grid_and_width_and_looks_one_token_around(conv_kind: str) -> None:
    config = _config(conv_kind=conv_kind, num_conv_blocks=1, img_size=16)
    torch.manual_seed(0)
    block = ConvBlock(config, drop_path=0.0).eval()
    grid = config.grid_size
    tokens = torch.rand(1, config.num_tokens, config.embed_dim)
    changed = tokens.clone()
    changed[0, 3 * grid + 4] += 100.0  # the token in row 3, column 4
    with torch.no_grad():
        out, out_changed = block(tokens), block(changed)
    assert out.shape == tokens.shape
    rows, columns = (out != out_changed).any(dim=-1).view(grid, grid).nonzero(as_tuple=True)
    assert set(rows.tolist()) <= {2, 3, 4}
    assert set(columns.tolist()) <= {3, 4, 5}
    assert len(rows) > 1


def test_conv_block_equals_its_layers_written_out() -> None:
    torch.manual_seed(0)
    grid = torch.rand(2, 8, 4, 4)
    tokens = grid.flatten(2).transpose(1, 2)
    for conv_kind in CONV_KINDS:
        block = ConvBlock(_config(conv_kind=conv_kind, num_conv_blocks=1), drop_path=0.0).eval()
        convs = [module for module in block.modules() if isinstance(module, nn.Conv2d)]
        norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
        expected = grid
        for conv, norm in zip(convs, norms, strict=True):
            norm.running_mean.uniform_()
            norm.running_var.uniform_(0.5, 1.5)
            expected = torch.relu(norm(conv(expected)))
        if conv_kind == "residual":
            expected = expected + grid
        assert [(conv.kernel_size, conv.groups) for conv in convs] == (
            [((3, 3), 8), ((1, 1), 1)] if conv_kind == "depthwise" else [((3, 3), 1)]
        )
        torch.testing.assert_close(block(tokens), expected.flatten(2).transpose(1, 2), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("num_conv_blocks", [0, 1, 2])
def test_positional_embedding_is_added_before_the_first_transformer_block(num_conv_blocks: int) -> None:
    model = _model(num_conv_blocks=num_conv_blocks).eval()
    arrived: list[Tensor] = []
    model.blocks[num_conv_blocks].register_forward_pre_hook(lambda _, args: arrived.append(args[0]))
    images = _images()
    with torch.no_grad():
        model(images)
        tokens = model.tokenizer(images)
        for block in model.blocks[:num_conv_blocks]:
            tokens = block(tokens)
        assert model.positional_embedding is not None
        torch.testing.assert_close(arrived[0], tokens + model.positional_embedding.weight)


def test_stochastic_depth_grows_linearly_and_rests_in_eval() -> None:
    settings: dict[str, Any] = {"drop_path": 0.5, "attn_drop": 0.0, "num_conv_blocks": 1, "conv_kind": "residual"}
    model, images = _model(**settings), _images(64)
    assert [block.drop_path.p for block in model.blocks] == pytest.approx([0.0, 0.25, 0.5])
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(images), model(images))
        torch.testing.assert_close(model(images), _model(**settings | {"drop_path": 0.0}).eval()(images))
        model.train()
        assert not torch.equal(model(images), model(images))


def test_dropped_branches_leave_the_residual_stream() -> None:
    torch.manual_seed(0)
    config = _config(num_conv_blocks=1, conv_kind="residual")
    tokens = torch.rand(2, config.num_tokens, config.embed_dim)
    assert torch.equal(ConvBlock(config, drop_path=1.0)(tokens), tokens)
    transformer = TransformerBlock(config, drop_path=1.0)
    assert torch.equal(transformer(tokens)[0], transformer.norm1(tokens))
    for conv_kind in ("conv3x3", "depthwise"):  # no branch to drop
        assert ConvBlock(_config(num_conv_blocks=1, conv_kind=conv_kind), drop_path=1.0)(tokens).any()


def test_branches_are_dropped_for_each_image_apart() -> None:
    torch.manual_seed(0)
    config = _config(num_conv_blocks=1, conv_kind="residual")
    tokens = torch.rand(64, config.num_tokens, config.embed_dim)
    kept = (ConvBlock(config, drop_path=0.5)(tokens) != tokens).flatten(1).any(dim=1)
    assert 10 < kept.sum() < 54


@pytest.mark.parametrize("depth", [1, 2])
def test_first_block_is_never_dropped(depth: int) -> None:
    model = _model(depth=depth, drop_path=0.9)
    assert model.blocks[0].drop_path.p == 0.0


@pytest.mark.parametrize("conv_kind", CONV_KINDS)
@pytest.mark.parametrize("positional_embedding", ["learnable", "sine", "none"])
@pytest.mark.parametrize("num_conv_blocks", [0, 1, 3])
@pytest.mark.parametrize("attention", ["materialized", "sdpa"])
def test_gradients_reach_every_parameter(
    conv_kind: str, positional_embedding: str, num_conv_blocks: int, attention: str
) -> None:
    model = _model(
        conv_kind=conv_kind,
        positional_embedding=positional_embedding,
        num_conv_blocks=num_conv_blocks,
        attention=attention,
    ).train()
    labels = torch.arange(16) % 3
    nn.functional.cross_entropy(model(_images(16)), labels).backward()
    still = {name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()}
    # A constant added to all the tokens' scores leaves their softmax as it is, so that bias is not trained.
    assert still == {"pool.attention.bias"}


def test_memory_layout_of_images_has_no_effect() -> None:
    model, images = _model(num_conv_blocks=1).eval(), _images()
    with torch.no_grad():
        torch.testing.assert_close(model(images), model(images.contiguous(memory_format=torch.channels_last)))


def test_images_of_a_batch_do_not_influence_each_other_in_eval() -> None:
    model, images = _model(num_conv_blocks=1).eval(), _images(4)
    with torch.no_grad():
        together, apart = model(images), torch.cat([model(image) for image in images.split(1)])
    torch.testing.assert_close(together, apart, atol=1e-6, rtol=1e-5)


def test_initial_weights_are_those_of_the_published_code() -> None:
    torch.manual_seed(0)
    model = create_model("cct_2_3x2_32", num_conv_blocks=1)
    linear = model.get_submodule("blocks.1.attn.qkv")
    conv = model.get_submodule("tokenizer.conv_layers.1.0")
    assert isinstance(linear, nn.Linear)
    assert isinstance(conv, nn.Conv2d)
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)
    assert model.positional_embedding is not None
    assert model.positional_embedding.weight.std().item() == pytest.approx(0.2, rel=0.05)
    assert not model.head.bias.any()
