"""How a training step computes its forward and backward pass: as torch does, compiled, or as a replayed CUDA graph."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.func import functional_call

from lsmha.config import ModelConfig, RunMode
from lsmha.errors import ConfigurationError
from lsmha.models.attention import AttentionKernels
from lsmha.models.cct import CCT

Forward = Callable[[Tensor], Tensor]
"""Logits (B, K) of images (B, C, height, width), in training mode."""


def training_forward(network: CCT, mode: RunMode, kernels: AttentionKernels, images: Tensor, *, bf16: bool) -> Forward:
    """The forward pass of a network that is trained in some mode; backward goes with it.

    Compiled code is that of an architecture: another seed or learning rate in this process runs it, too, and other
    processes of the machine find most of it in torch's cache on disk. A CUDA graph is of this network alone, and needs
    no compiler.

    Args:
        network: In training mode, where it is to be trained.
        mode: eager, compiled or cuda-graph.
        kernels: The attention kernels that it uses.
        images: A batch as all will be, normalized.
        bf16: Whether under autocast to bfloat16.

    Raises:
        ValueError: The mode is cuda-graph, and the network on no GPU.
    """
    if mode == "eager":
        return network
    if mode == "compiled":
        return _Compiled(network, kernels)
    if images.device.type != "cuda":
        raise ConfigurationError(f"train.mode: must be eager or compiled without a GPU, but got {mode!r}")
    # What is recorded is computed some times before: that shall leave no trace in batch norms and random numbers. Casts
    # of weights are part of the graph, so none may be remembered from outside it.
    before = [buffer.clone() for buffer in network.buffers()]
    with (
        torch.random.fork_rng(devices=[images.device]),
        torch.autocast("cuda", dtype=torch.bfloat16, enabled=bf16, cache_enabled=False),
    ):
        graphed: Any = torch.cuda.make_graphed_callables(network, (images.clone(),), allow_unused_input=True)
    for buffer, value in zip(network.buffers(), before, strict=True):
        buffer.copy_(value)
    return cast(Forward, graphed)


class _Compiled:
    """Runs an architecture's compiled code with the weights of one network."""

    def __init__(self, network: CCT, kernels: AttentionKernels) -> None:
        self._run = _compiled(network.config, kernels)
        self._tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}

    def __call__(self, images: Tensor) -> Tensor:
        return self._run(self._tensors, images)


@lru_cache(maxsize=64)
def _compiled(config: ModelConfig, kernels: AttentionKernels) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    with torch.device("meta"):
        template = CCT(config)
    template.use_kernels(kernels)
    template.train()

    def forward(tensors: dict[str, Tensor], images: Tensor) -> Tensor:
        logits: Tensor = functional_call(template, tensors, (images,))
        return logits

    # Code of another name for each architecture: torch gives up compiling one that it met in too many forms.
    name = f"forward_{hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:12]}"
    forward.__code__ = forward.__code__.replace(co_name=name)
    return torch.compile(forward, dynamic=False)
