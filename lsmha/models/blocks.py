"""The two families of blocks, (B, N, D) -> (B, N, D): transformer blocks, and convolutional ones on the token grid."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from lsmha.config import ModelConfig
from lsmha.models.attention import MultiHeadAttention
from lsmha.shapes import Float, Shaped


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., arXiv:1603.09382): in training, drops a branch for each image with probability p.

    Not torchvision's, which draws in place: `torch.func.vmap` cannot draw that for each of several networks.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, branch: Float[Tensor, "B ..."]) -> Float[Tensor, "B ..."]:
        """The branch, scaled by 1 / (1 - p) where it is kept."""
        if not self.training or self.p == 0:
            return branch
        return branch * F.dropout(branch.new_ones(len(branch), *[1] * (branch.ndim - 1)), self.p)


class TransformerBlock(nn.Module):
    """CCT's encoder block (Hassani et al., arXiv:2104.05704, published code).

    Not the stock pre-norm block: `norm1` acts on the residual stream itself, between attention and MLP.
    """

    def __init__(self, config: ModelConfig, drop_path: float) -> None:
        super().__init__()
        dim = config.embed_dim
        self.pre_norm = nn.LayerNorm(dim)
        self.attn = MultiHeadAttention(dim, config.num_heads, attn_drop=config.attn_drop, attention=config.attention)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = nn.Linear(dim, config.mlp_dim)
        self.linear2 = nn.Linear(config.mlp_dim, dim)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, tokens: Float[Tensor, "B N D"], head_mask: Shaped[Tensor, " H"] | None = None
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B H N d"]]:
        """The block's tokens and its head outputs before the projection."""
        attended, head_outputs = self.attn(self.pre_norm(tokens), head_mask)
        tokens = self.norm1(tokens + self.drop_path(attended))
        tokens = tokens + self.drop_path(self.linear2(F.gelu(self.linear1(tokens))))
        return tokens, head_outputs


def _conv_bn_relu(dim: int, kernel_size: int, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(dim, dim, kernel_size, padding=kernel_size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(dim), nn.ReLU(inplace=True))


class ConvBlock(nn.Module):
    """Convolutional block that replaces a transformer block, on the same grid and width; `ModelConfig.conv_kind`:

    - `conv3x3`: 3x3 convolution, batch norm, ReLU
    - `residual`: the same on a residual branch, with stochastic depth
    - `depthwise`: 3x3 depthwise and 1x1 pointwise convolution, each with batch norm and ReLU
    """

    def __init__(self, config: ModelConfig, drop_path: float) -> None:
        super().__init__()
        dim = config.embed_dim
        self.grid_size = config.grid_size
        self.residual = config.conv_kind == "residual"
        if config.conv_kind == "depthwise":
            self.layers = nn.Sequential(*_conv_bn_relu(dim, 3, groups=dim), *_conv_bn_relu(dim, 1))
        else:
            self.layers = _conv_bn_relu(dim, 3)
        self.drop_path = DropPath(drop_path if self.residual else 0.0)

    def forward(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """New tokens, through the (B, D, grid, grid) view."""
        # Tokens are a channels-last image already: the permutations below copy nothing.
        grid = tokens.unflatten(1, (self.grid_size, self.grid_size)).permute(0, 3, 1, 2)
        out = self.layers(grid)
        if self.residual:
            out = grid + self.drop_path(out)
        return out.permute(0, 2, 3, 1).flatten(1, 2)
