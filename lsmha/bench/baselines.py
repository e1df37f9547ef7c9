"""What a user would take instead, installed on demand."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset as TorchDataset

from lsmha.config import ModelConfig
from lsmha.data import Dataset, LabeledImages
from lsmha.errors import MissingBaselineError

TIMM_WORKERS = 4
"""Processes that load images, by default of timm's training script; here no more than there are cores."""


def vit_pytorch_cct(config: ModelConfig) -> nn.Module:
    """The same network by vit-pytorch, which has the published structure, `norm1` on the residual stream included.

    Raises:
        MissingBaselineError: vit-pytorch is not installed.
        ValueError: The network has conv blocks, which vit-pytorch does not know.
    """
    if config.num_conv_blocks:
        raise ValueError(f"num_conv_blocks must be 0 for vit-pytorch, but got {config.num_conv_blocks}")
    model = _baseline("vit_pytorch.cct", "vit-pytorch").CCT(
        img_size=config.img_size,
        n_input_channels=config.in_channels,
        embedding_dim=config.embed_dim,
        n_conv_layers=config.num_tokenizer_convs,
        kernel_size=config.kernel_size,
        stride=config.conv_stride,
        padding=config.conv_padding,
        num_layers=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        num_classes=config.num_classes,
        positional_embedding=config.positional_embedding,
        attention_dropout=config.attn_drop,
        stochastic_depth_rate=config.drop_path,
    )
    return cast(nn.Module, model)


class _Pictures(TorchDataset[tuple[Any, int]]):
    """Images as a folder of files would give them, decoded; `transform` is for timm to set."""

    def __init__(self, images: LabeledImages) -> None:
        self._pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images.images]
        self._labels = images.labels.tolist()
        self.transform: Callable[[Any], Any] = lambda picture: picture

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(self._pictures[index]), self._labels[index]


def timm_loader(dataset: Dataset, *, batch_size: int, device: torch.device) -> Iterable[tuple[Tensor, Tensor]]:
    """The training images of a data set by timm's loader: random crops and flips in its default number of processes,
    and on a GPU its prefetcher.

    Raises:
        MissingBaselineError: timm is not installed.
    """
    loader = _baseline("timm.data", "timm").create_loader(
        _Pictures(dataset.train),
        input_size=tuple(dataset.train.images.shape[1:]),
        batch_size=batch_size,
        is_training=True,
        color_jitter=0.0,
        mean=tuple(dataset.mean),
        std=tuple(dataset.std),
        num_workers=min(TIMM_WORKERS, os.cpu_count() or 1),
        pin_memory=device.type == "cuda",
        use_prefetcher=device.type == "cuda",
        device=device,
    )
    return cast(Iterable[tuple[Tensor, Tensor]], loader)


def timm_adamw(network: nn.Module, *, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW as timm's training script makes it.

    Raises:
        MissingBaselineError: timm is not installed.
    """
    make = _baseline("timm.optim", "timm").create_optimizer_v2
    return cast(torch.optim.Optimizer, make(network, opt="adamw", lr=learning_rate, weight_decay=weight_decay))


def _baseline(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MissingBaselineError(f"{package} is not installed: pip install {package}") from None
