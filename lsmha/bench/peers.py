"""What a user would take instead, installed on demand."""

from __future__ import annotations

import importlib
from typing import Any, cast

from torch import nn

from lsmha.config import ModelConfig


class MissingPeerError(ImportError):
    """A package to compare with is not installed; the message is one line that says how to get it."""


def vit_pytorch_cct(config: ModelConfig) -> nn.Module:
    """The same network by vit-pytorch, which has the published structure, `norm1` on the residual stream included.

    Raises:
        MissingPeerError: vit-pytorch is not installed.
        ValueError: The network has conv blocks, which vit-pytorch does not know.
    """
    if config.num_conv_blocks:
        raise ValueError(f"num_conv_blocks must be 0 for vit-pytorch, but got {config.num_conv_blocks}")
    model = _peer("vit_pytorch.cct", "vit-pytorch").CCT(
        img_size=config.img_size,
        n_input_channels=config.in_channels,
        embedding_dim=config.embed_dim,
        n_conv_layers=config.num_tokenizer_convs,
        kernel_size=config.kernel_size,
        stride=max(1, config.kernel_size // 2 - 1),
        padding=max(1, config.kernel_size // 2),
        num_layers=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        num_classes=config.num_classes,
        positional_embedding=config.positional_embedding,
        attention_dropout=config.attn_drop,
        stochastic_depth_rate=config.drop_path,
    )
    return cast(nn.Module, model)


def _peer(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingPeerError(f"{package} is not installed: pip install {package}") from None
