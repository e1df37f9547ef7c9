"""Parameters and multiply-accumulates of an architecture, without allocating it."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from lsmha.config import ModelConfig
from lsmha.models.cct import CCT


class ModelCost(NamedTuple):
    """Parameters (a fixed positional embedding is none), and multiply-accumulates of one image's forward pass."""

    params: int
    macs: int


@lru_cache(maxsize=4096)
def model_cost(config: ModelConfig) -> ModelCost:
    """Cost of one network by torch's own flop counter (half its count: a multiply-accumulate is two operations).

    Counted with materialized attention, the one form the counter sees whole on every device; the number does not
    depend on the kernel that runs. Matrix products and convolutions count; norms, activations and softmax do not.
    """
    with torch.device("meta"):
        model = CCT(config.model_copy(update={"attention": "materialized"})).eval()
        images = torch.empty(1, config.in_channels, config.img_size, config.img_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    params = sum(parameter.numel() for parameter in model.parameters())
    return ModelCost(params, counter.get_total_flops() // 2)
