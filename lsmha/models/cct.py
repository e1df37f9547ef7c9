"""The compact convolutional transformer and its hybrids, as published or with any number of heads and conv blocks.

Shapes: B images, N tokens, D = embed_dim, H = num_heads, d = head_dim = D / H, K = num_classes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lsmha.config import ModelConfig
from lsmha.models.attention import AttentionKernels
from lsmha.models.blocks import ConvBlock, TransformerBlock
from lsmha.models.tokenizer import PositionalEmbedding, Tokenizer
from lsmha.shapes import Float


class CCTOutput(NamedTuple):
    """Logits (B, K) and, for each block, its head outputs before the projection (B, H, N, d); None for conv blocks."""

    logits: Tensor
    head_outputs: tuple[Tensor | None, ...]


class SequencePooling(nn.Module):
    """Average of the tokens weighted by a learnt softmax over them."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.attention = nn.Linear(embed_dim, 1)
        # The softmax takes no notice of a shift. What reaches the bias is rounding noise, which Adam would blow up to
        # whole steps; the bias is kept, because published weights have one.
        self.attention.bias.requires_grad_(False)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B D"]:
        weights = self.attention(tokens).softmax(dim=1)
        return (weights.transpose(1, 2) @ tokens).squeeze(1)


class CCT(nn.Module):
    """Compact convolutional transformer (Hassani et al., arXiv:2104.05704) whose first `num_conv_blocks` blocks are
    convolutional.

    The positional embedding is added in front of the first transformer block, which without conv blocks is where the
    published model has it; a plain CNN (`num_conv_blocks == depth`) has none.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = Tokenizer(config)
        drop_paths = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            (ConvBlock if index < config.num_conv_blocks else TransformerBlock)(config, drop_path)
            for index, drop_path in enumerate(drop_paths)
        )
        self.positional_embedding = PositionalEmbedding(config) if config.has_attention else None
        self.norm = nn.LayerNorm(config.embed_dim)
        self.pool = SequencePooling(config.embed_dim)
        self.head = nn.Linear(config.embed_dim, config.num_classes)
        self.apply(_init_weights)
        self.to(memory_format=torch.channels_last)  # convolutions are 1.03-1.35x faster so on CPUs

    def use_kernels(self, kernels: AttentionKernels) -> None:
        """Compute attention by these kernels from now on, where `config.attention` leaves the choice (`auto`)."""
        if self.config.attention == "auto":
            for block in self.blocks:
                if isinstance(block, TransformerBlock):
                    block.attn.kernels = kernels

    def forward_heads(self, images: Float[Tensor, "B C S S"], head_mask: Tensor | None = None) -> CCTOutput:
        """Classify images, keeping what every head said.

        Args:
            images: (B, in_channels, img_size, img_size).
            head_mask: (depth, H) factors on the head outputs, 1 keeps a head and 0 silences it; the rows of conv
                blocks have no effect.

        Raises:
            ValueError: The mask has another shape.
        """
        if head_mask is not None and head_mask.shape != (len(self.blocks), self.config.num_heads):
            raise ValueError(
                f"head_mask must have shape (depth, num_heads) = ({len(self.blocks)}, {self.config.num_heads}), "
                f"but got {tuple(head_mask.shape)}"
            )
        tokens = self.tokenizer(images)
        head_outputs: list[Tensor | None] = []
        for index, block in enumerate(self.blocks):
            if index == self.config.num_conv_blocks and self.positional_embedding is not None:
                tokens = self.positional_embedding(tokens)
            if isinstance(block, ConvBlock):
                tokens = block(tokens)
                head_outputs.append(None)
            else:
                tokens, heads = block(tokens, None if head_mask is None else head_mask[index])
                head_outputs.append(heads)
        return CCTOutput(self.head(self.pool(self.norm(tokens))), tuple(head_outputs))

    def forward(self, images: Float[Tensor, "B C S S"], head_mask: Tensor | None = None) -> Float[Tensor, "B K"]:
        """Logits of images (B, in_channels, img_size, img_size); `head_mask` as in `forward_heads`."""
        return self.forward_heads(images, head_mask).logits


def _init_weights(module: nn.Module) -> None:
    """Initial weights of the published CCT code; batch norms keep torch's own."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
