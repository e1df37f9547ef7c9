"""From pixels to tokens: CCT's convolutional tokenizer, and what tells the tokens their place."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from lsmha.config import ModelConfig
from lsmha.shapes import Float, Float32


class Tokenizer(nn.Module):
    """Convolutions (no bias), each with a 3x3/2 max-pool and ReLU.

    Stride and padding follow the kernel as in the published code (Hassani et al., arXiv:2104.05704). That has ReLU
    before the pool. The numbers are the same, gradients included, but ReLU then has four times as much to do.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.conv_layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(
                        c_in, c_out, config.kernel_size, config.conv_stride, padding=config.conv_padding, bias=False
                    ),
                    nn.MaxPool2d(3, stride=2, padding=1),
                    nn.ReLU(inplace=True),
                )
                for c_in, c_out in pairwise(config.conv_channels)
            )
        )

    def forward(self, images: Float[Tensor, "B C height width"]) -> Float[Tensor, "B N D"]:
        # Channels last from the start: the flattened result is the token layout without a copy.
        # (Not by `memory_format`, which vmap does not know.)
        channels_last = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        grid = self.conv_layers(channels_last)
        return grid.permute(0, 2, 3, 1).flatten(1, 2)


def sine_embedding(num_tokens: int, embed_dim: int) -> Float32[Tensor, "1 {num_tokens} {embed_dim}"]:
    """Fixed sinusoidal embedding of the published CCT code.

    Even channels i hold sin(p / 10000^(2 (i // 2) / embed_dim)) of position p, odd channels the cosine.
    """
    position = torch.arange(num_tokens, dtype=torch.float64).unsqueeze(1)
    channel = torch.arange(embed_dim)
    angle = position / 10000.0 ** (2 * (channel // 2) / embed_dim)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float().unsqueeze(0)


class PositionalEmbedding(nn.Module):
    """Adds a learnable, sinusoidal or no embedding to the tokens."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        shape = (1, config.num_tokens, config.embed_dim)
        if config.positional_embedding == "learnable":
            self.weight = nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.2))
        elif config.positional_embedding == "sine":
            self.register_buffer("weight", sine_embedding(config.num_tokens, config.embed_dim))
        else:
            self.register_parameter("weight", None)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        # In the tokens' type: under autocast, a sum with float32 weights would make the residual stream float32, with a
        # cast before each linear layer and another one after it (7 % of a step of cct_2_3x2_32 on two CPU cores).
        return tokens if self.weight is None else tokens + self.weight.to(tokens.dtype)
