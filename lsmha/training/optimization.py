"""Optimizers and the learning-rate schedule of a recipe."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from lsmha.config import TrainConfig


def build_optimizer(
    parameters: Iterable[tuple[str, torch.Tensor]], config: TrainConfig, *, stacked: bool = False
) -> torch.optim.Optimizer:
    """AdamW or Nesterov SGD; weight decay reaches matrices and kernels only, not biases, norms and embeddings.

    Args:
        parameters: Names and tensors, such as `model.named_parameters()`.
        config: The recipe.
        stacked: Whether the tensors are those of several networks, along a first dimension of their own.
    """
    decayed: list[torch.Tensor] = []
    undecayed: list[torch.Tensor] = []
    for name, parameter in parameters:
        if parameter.requires_grad:
            plain = parameter.ndim - stacked <= 1 or name.startswith("positional_embedding")
            (undecayed if plain else decayed).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": undecayed, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
    nesterov = config.momentum > 0
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=config.momentum, nesterov=nesterov, fused=True)


def learning_rate_at(step: int, *, total_steps: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """Learning rate of optimizer step `step` (0-based): linear warm-up, then a cosine to `min_lr_ratio` of the peak.

    A pure function of the step, so that a resumed run needs no schedule state.
    """
    warmup_steps = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup_steps:
        return config.learning_rate * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    return config.learning_rate * (config.min_lr_ratio + (1 - config.min_lr_ratio) * cosine)


def epoch_learning_rates(epoch: int, *, steps_per_epoch: int, config: TrainConfig) -> list[float]:
    """Learning rates of the steps of an epoch, which counts from 1."""
    first, total = (epoch - 1) * steps_per_epoch, config.epochs * steps_per_epoch
    return [
        learning_rate_at(step, total_steps=total, steps_per_epoch=steps_per_epoch, config=config)
        for step in range(first, first + steps_per_epoch)
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Let the optimizer's next steps have this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
