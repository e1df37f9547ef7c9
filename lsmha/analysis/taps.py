"""Taps: where a block's output is read, for all blocks within one forward pass.

Shapes: B images, N tokens, F units of the tap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, cast

from torch import Tensor

from lsmha.config import ModelConfig
from lsmha.models import CCT
from lsmha.models.blocks import ConvBlock, TransformerBlock

TapKind = Literal["attn", "mlp", "block"]


class Tap(NamedTuple):
    """A place in the network, with units that a read-out can learn from.

    - `attn`: the outputs of all heads side by side, before the projection mixes them; F = embed_dim nodes, of which
      head h has those from h * head_dim on. Transformer blocks only.
    - `mlp`: the MLP's hidden nodes after GELU, before its second layer; F = mlp_dim. Transformer blocks only.
    - `block`: the block's tokens; F = embed_dim channels, which are the filters of a conv block.
    """

    kind: TapKind
    block: int
    """Block index, from 0 at the tokenizer."""

    def __str__(self) -> str:
        return f"block{self.block}.{self.kind}"


def taps_of(config: ModelConfig, kinds: Iterable[TapKind]) -> list[Tap]:
    """The taps of these kinds in every transformer block, and `block` in every conv block, from first to last."""
    wanted = tuple(dict.fromkeys(kinds))
    of_conv: tuple[TapKind, ...] = ("block",)
    return [
        Tap(kind, block)
        for block in range(config.depth)
        for kind in (of_conv if block < config.num_conv_blocks else wanted)
    ]


def tap_width(config: ModelConfig, tap: Tap) -> int:
    """Units F of a tap."""
    return config.mlp_dim if tap.kind == "mlp" else config.embed_dim


def tap_heads(config: ModelConfig, tap: Tap) -> int | None:
    """Heads that the units of a tap belong to; None where there are no heads."""
    return config.num_heads if tap.kind == "attn" else None


@contextmanager
def watch_taps(model: CCT, taps: Iterable[Tap], on_tap: Callable[[Tap, Tensor], None]) -> Iterator[None]:
    """Within the block, every forward pass calls `on_tap` with each tap's tokens (B, N, F) as soon as they exist."""
    handles = [_watch(cast(TransformerBlock | ConvBlock, model.blocks[tap.block]), tap, on_tap) for tap in taps]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _watch(block: TransformerBlock | ConvBlock, tap: Tap, on_tap: Callable[[Tap, Tensor], None]) -> Any:
    if tap.kind == "block":
        # Transformer blocks return their head outputs beside the tokens.
        return block.register_forward_hook(
            lambda _, __, output: on_tap(tap, output[0] if isinstance(output, tuple) else output)
        )
    assert isinstance(block, TransformerBlock)
    reader = block.attn.proj if tap.kind == "attn" else block.linear2
    return reader.register_forward_pre_hook(lambda _, inputs: on_tap(tap, inputs[0]))
