"""Multi-head self-attention that shows what each head contributes.

Shapes: B images, N tokens, D = embed_dim, H = num_heads, d = head_dim = D / H.
"""

from __future__ import annotations

from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from lsmha.config import AttentionKernel
from lsmha.shapes import Float, Shaped

PADDED_TO = 8
"""Channels of a head that fused kernels want a multiple of."""


class AttentionKernels(NamedTuple):
    """The kernels of a network."""

    training: AttentionKernel
    inference: AttentionKernel


def default_kernels(device_type: str) -> AttentionKernels:
    """Kernels that do well without a measurement.

    On CPUs, materializing the weights trains faster in bfloat16 (by 2x at few heads, and not at hundreds), while
    `scaled_dot_product_attention` wins inference by up to 10x at 256 heads. On GPUs it has fused kernels for both.
    """
    return AttentionKernels("materialized" if device_type == "cpu" else "sdpa", "sdpa")


def attend(
    query: Float[Tensor, "B H N d"],
    key: Float[Tensor, "B H N d"],
    value: Float[Tensor, "B H N d"],
    kernel: AttentionKernel,
    *,
    dropout: float = 0.0,
) -> Float[Tensor, "B H N d"]:
    """softmax(query key^T / sqrt(d)) value for each head, with dropout on the weights."""
    head_dim = query.shape[-1]
    if kernel == "materialized":
        # The query is scaled, not the product, which has N / d times as many elements.
        attn_weights = (query * head_dim**-0.5 @ key.transpose(-2, -1)).softmax(dim=-1)
        if dropout:
            attn_weights = F.dropout(attn_weights, dropout)
        return attn_weights @ value
    if kernel == "sdpa-padded":
        query, key, value = (F.pad(tensor, (0, -head_dim % PADDED_TO)) for tensor in (query, key, value))
    fused = partial(F.scaled_dot_product_attention, dropout_p=dropout, scale=head_dim**-0.5)
    if kernel == "sdpa-fp32":
        with torch.autocast(query.device.type, enabled=False):
            return fused(query.float(), key.float(), value.float()).to(query.dtype)
    return fused(query, key, value)[..., :head_dim]


def kernel_name(kernel: AttentionKernel, query: Float[Tensor, "B H N d"]) -> str:
    """The kernel with, for `sdpa`, what torch runs for such a query without dropout: `sdpa (flash)`."""
    choice = getattr(torch, "_fused_sdp_choice", None)  # private, there from torch 2.0 to 2.15 at least
    if kernel == "materialized" or choice is None:
        return kernel
    if kernel == "sdpa-padded":
        query = F.pad(query, (0, -query.shape[-1] % PADDED_TO))
    elif kernel == "sdpa-fp32":
        query = query.float()
    return f"{kernel} ({SDPBackend(choice(query, query, query)).name.removesuffix('_ATTENTION').lower()})"


class MultiHeadAttention(nn.Module):
    """Self-attention of CCT: fused bias-free qkv, scaled by head_dim ** -0.5, projected with bias.

    `project(head_outputs(tokens))` is the whole layer. The split is the tap of the single-head analysis: `head_outputs`
    are what the heads say before the projection mixes them, and because the projection is linear, the sum over heads
    of their projected outputs, plus the bias, is the layer's output.
    """

    def __init__(
        self, embed_dim: int, num_heads: int, *, attn_drop: float, attention: AttentionKernel | Literal["auto"]
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = embed_dim // num_heads
        self.attn_drop = attn_drop
        self.kernels: AttentionKernels | None = None if attention == "auto" else AttentionKernels(attention, attention)
        """Kernels to use; None for `default_kernels` of the device."""
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim, bias=False)
        self.proj = nn.Linear(embed_dim, embed_dim)

    def head_outputs(self, tokens: Float[Tensor, "B N D"]) -> Float[Tensor, "B H N d"]:
        """Attention-weighted values of each head."""
        batch, num_tokens, _ = tokens.shape
        qkv = self.qkv(tokens).reshape(batch, num_tokens, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        dropout = self.attn_drop if self.training else 0.0
        kernels = self.kernels or default_kernels(tokens.device.type)
        kernel = kernels.training if self.training else kernels.inference
        return attend(query, key, value, kernel, dropout=dropout)

    def project(self, head_outputs: Float[Tensor, "B H N d"]) -> Float[Tensor, "B N D"]:
        """Mix the heads."""
        return self.proj(head_outputs.transpose(1, 2).flatten(2))

    def forward(
        self, tokens: Float[Tensor, "B N D"], head_mask: Shaped[Tensor, " H"] | None = None
    ) -> tuple[Float[Tensor, "B N D"], Float[Tensor, "B H N d"]]:
        """The layer's output and the masked head outputs it was made of.

        `head_mask` multiplies each head's output: 1 keeps a head, 0 silences it.
        """
        head_outputs = self.head_outputs(tokens)
        if head_mask is not None:
            head_outputs = head_outputs * head_mask.to(head_outputs.dtype).view(1, -1, 1, 1)
        return self.project(head_outputs), head_outputs


def head_contributions(layer: MultiHeadAttention, head_outputs: Float[Tensor, "B H N d"]) -> Float[Tensor, "B H N D"]:
    """What each head adds to the layer's output.

    Their sum over heads plus `layer.proj.bias` equals `layer.project(head_outputs)`.
    """
    weight = layer.proj.weight.view(-1, layer.num_heads, layer.head_dim)
    return torch.einsum("bhnd,ehd->bhne", head_outputs, weight)
