"""Cost of a network without building it: parameters and multiply-accumulates."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from lsmha.config import ModelConfig


class ModelCost(NamedTuple):
    """Parameters (a fixed positional embedding is none), and multiply-accumulates of one image's forward pass."""

    params: int
    macs: int


def model_cost(config: ModelConfig) -> ModelCost:
    """Cost of one network, whatever its attention's kernel and its number of heads.

    Matrix products and convolutions count; norms, activations and softmax do not. The formulas say what the modules of
    `CCT` hold and what torch's own flop counter finds in them (half its count: a multiply-accumulate is two
    operations), which the tests ask. Here it is not asked: it has torch import its compiler, for seconds.
    """
    width, tokens = config.embed_dim, config.num_tokens
    conv_blocks, transformer_blocks = config.num_conv_blocks, config.depth - config.num_conv_blocks
    head = ModelCost(
        params=2 * width + (width + 1) + (width + 1) * config.num_classes,  # norm, pooling, classifier
        macs=2 * tokens * width + width * config.num_classes,
    )
    is_embedding_learnt = config.has_attention and config.positional_embedding == "learnable"
    parts = [
        (1, _tokenizer(config)),
        (conv_blocks, _conv_block(config)),
        (transformer_blocks, _transformer_block(config)),
        (1, ModelCost(tokens * width if is_embedding_learnt else 0, 0)),
        (1, head),
    ]
    return ModelCost(
        params=sum(number * part.params for number, part in parts),
        macs=sum(number * part.macs for number, part in parts),
    )


def _tokenizer(config: ModelConfig) -> ModelCost:
    params = [config.kernel_size**2 * c_in * c_out for c_in, c_out in pairwise(config.conv_channels)]
    macs = [weights * side**2 for weights, side in zip(params, config.conv_sides, strict=True)]
    return ModelCost(sum(params), sum(macs))


def _conv_block(config: ModelConfig) -> ModelCost:
    width, norm = config.embed_dim, 2 * config.embed_dim
    if config.conv_kind == "depthwise":
        weights, norms = 9 * width + width**2, 2 * norm
    else:
        weights, norms = 9 * width**2, norm
    return ModelCost(weights + norms, weights * config.num_tokens)


def _transformer_block(config: ModelConfig) -> ModelCost:
    width, hidden, tokens, norm = config.embed_dim, config.mlp_dim, config.num_tokens, 2 * config.embed_dim
    weights = 4 * width**2 + 2 * width * hidden  # queries, keys, values and projection; the two layers of the MLP
    biases = 2 * width + hidden
    inside_attention = 2 * tokens**2 * width  # the scores, and the values' average by them
    return ModelCost(weights + biases + 2 * norm, tokens * weights + inside_attention)
