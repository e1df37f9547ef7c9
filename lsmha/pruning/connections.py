"""Which weights connect which layers of units, and so can be pruned by the labels that the units stand for.

A layer of units is named by (tap, block index), as the analysis names it:

- ("attn", m): the D nodes of the concatenated head outputs before the projection, node h * head_dim + j of head h;
- ("mlp", m): the mlp_dim hidden nodes after GELU, before linear2;
- ("block", m): the D channels of the block's output, which in a conv block are its filters.

Two methods, each with the connections between units that it can judge:

- `afcc`, applying filters' cluster connections (arXiv:2501.12880), prunes between filters. In conv block m >= 1 that is
  the one convolution that mixes channels: the 3x3 one of `conv3x3` and `residual`, and of `depthwise` the 1x1 pointwise
  one, since its 3x3 part has one kernel per channel and so connects no two filters. In a plain CNN the classifier reads
  filters and is pruned too; in a hybrid it reads a transformer block, which is ANDC's business.
- `andc` (arXiv:2501.12900, after arXiv:2309.07537) prunes between the nodes of transformer blocks:

  - the value rows of qkv, ("block", m - 1) -> ("attn", m). Query and key rows stay: they decide where a head looks, not
    what it carries, and no unit of a tap stands for them;
  - the projection, ("attn", m) -> ("block", m). It adds to the residual stream, whose channels are those of the block's
    output;
  - linear1, ("block", m - 1) -> ("mlp", m). What it reads is the stream between attention and MLP, which has no tap of
    its own; its channels are those that the block before wrote, and attention only added to them;
  - linear2, ("mlp", m) -> ("block", m);
  - the classifier, ("block", depth - 1) -> labels, unless the last block is convolutional.

Norms, the positional embedding and pooling have no weight from one channel to another, and residual paths none at all.
What reads the tokenizer is not pruned: its channels have no read-out, and so no labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lsmha.config import ModelConfig

LayerKey = tuple[str, int]
"""(tap, block index) of a layer of units; a `lsmha.analysis` tap is one."""

PruningMethod = Literal["afcc", "andc"]


@dataclass(frozen=True)
class Connection:
    """The weights from one layer of units to the next: row i of `rows` is target unit i, column j source unit j."""

    parameter: str
    """Name of the weight in the model, e.g. "blocks.3.attn.qkv.weight", of shape (rows, source units, ...)."""
    rows: tuple[int, int]
    """Start and stop of the rows that belong to the connection; other rows are never pruned."""
    source: LayerKey
    target: LayerKey | None
    """None for the classifier head, whose rows are the labels themselves."""


def layer_units(config: ModelConfig, layer: LayerKey) -> int:
    """Units of a layer."""
    return config.mlp_dim if layer[0] == "mlp" else config.embed_dim


def connections(config: ModelConfig, method: PruningMethod) -> list[Connection]:
    """All connections that a method prunes in a network, from first to last; none where it has nothing to prune.

    Those of both methods never overlap: a hybrid can be pruned by their sum.

    Raises:
        ValueError: The method is unknown.
    """
    if method == "afcc":
        return _between_filters(config)
    if method == "andc":
        return _between_nodes(config)
    raise ValueError(f"method must be afcc or andc, but got {method!r}")


def _between_filters(config: ModelConfig) -> list[Connection]:
    layer = 3 if config.conv_kind == "depthwise" else 0  # the pointwise convolution follows conv, norm and ReLU
    found = [
        Connection(
            f"blocks.{block}.layers.{layer}.weight", (0, config.embed_dim), ("block", block - 1), ("block", block)
        )
        for block in range(1, config.num_conv_blocks)
    ]
    return found + ([_classifier(config)] if not config.has_attention else [])


def _between_nodes(config: ModelConfig) -> list[Connection]:
    dim, found = config.embed_dim, []
    for block in range(config.num_conv_blocks, config.depth):
        name = f"blocks.{block}"
        before, attn, mlp, after = ("block", block - 1), ("attn", block), ("mlp", block), ("block", block)
        if block > 0:
            found.append(Connection(f"{name}.attn.qkv.weight", (2 * dim, 3 * dim), before, attn))
        found.append(Connection(f"{name}.attn.proj.weight", (0, dim), attn, after))
        if block > 0:
            found.append(Connection(f"{name}.linear1.weight", (0, config.mlp_dim), before, mlp))
        found.append(Connection(f"{name}.linear2.weight", (0, dim), mlp, after))
    return found + ([_classifier(config)] if config.has_attention else [])


def _classifier(config: ModelConfig) -> Connection:
    return Connection("head.weight", (0, config.num_classes), ("block", config.depth - 1), None)
