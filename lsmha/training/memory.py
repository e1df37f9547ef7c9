"""What a training step takes of a device's memory, known before it is made."""

from __future__ import annotations

import weakref
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from lsmha.config import AttentionKernel, ModelConfig, TrainConfig
from lsmha.devices.compute_plan import ComputePlan, training_candidates
from lsmha.errors import MemoryShortageError
from lsmha.models.attention import AttentionKernels
from lsmha.models.cct import CCT
from lsmha.training.optimization import build_optimizer

_NEGLIGIBLE = 0.1
"""Part of the free memory below which a rough upper bound will do."""


def fitting_plan(
    plan: ComputePlan, model: ModelConfig, train: TrainConfig, *, images: int, device: torch.device, memory: int
) -> ComputePlan:
    """The plan, if a training step fits into the memory by it; else one that does, out of what `precision: auto` and
    `attention: auto` leave open.

    Args:
        plan: As `plan_training` made it.
        model: The network.
        train: The recipe.
        images: Images per step on the device.
        device: Where to train.
        memory: Bytes that there are.

    Raises:
        MemoryShortageError: None does.
    """
    if _upper_bound(model, images) <= _NEGLIGIBLE * memory:
        return plan
    chosen = plan.precision, plan.attention.training
    needs = {}
    for precision, kernel in dict.fromkeys([chosen, *training_candidates(model, train, device)]):
        needed = training_memory(model, train, kernel=kernel, bf16=precision == "bf16", images=images)
        if needed <= memory:
            return ComputePlan(precision, AttentionKernels(kernel, plan.attention.inference))
        needs[needed] = f"{precision}, attention {kernel}"
    least = min(needs)
    raise MemoryShortageError(
        f"a training step needs {least / 2**30:.1f} GiB at least ({images} images, {needs[least]}), "
        f"but {memory / 2**30:.1f} GiB are free"
    )


def _upper_bound(model: ModelConfig, images: int) -> float:
    """Bytes that a step takes at most, by what there is of each kind of tensor, in float32."""
    weights_of_attention = 8 * model.num_heads * model.num_tokens**2 if model.has_attention else 0
    of_block = model.num_tokens * (24 * model.embed_dim + 6 * model.mlp_dim) + weights_of_attention
    widest = max(model.embed_dim, model.tokenizer_dim)
    of_tokenizer = 8 * model.num_tokenizer_convs * model.img_size**2 * widest
    of_weights = 8 * model.depth * (20 * model.embed_dim**2 + 2 * model.embed_dim * model.mlp_dim)
    return 4 * (images * (model.depth * of_block + of_tokenizer) + of_weights)


@lru_cache(maxsize=4096)
def training_memory(model: ModelConfig, train: TrainConfig, *, kernel: AttentionKernel, bf16: bool, images: int) -> int:
    """Bytes of all tensors at the peak of a training step: weights, gradients, optimizer, average of the weights, what
    the forward pass keeps, and temporaries.

    The step is made in full, on torch's fake tensors, which have sizes but no contents: it takes tenths of a second and
    no memory. What libraries take for themselves, the interpreter and the data set are not in it.

    Args:
        model: The network.
        train: The recipe.
        kernel: Attention kernel of training.
        bf16: Whether under autocast to bfloat16.
        images: Images per step on one device.
    """
    with torch.device("meta"):
        network = CCT(model)
    network.use_kernels(AttentionKernels(kernel, kernel))
    network.train()
    with FakeTensorMode(), _LiveBytes() as live:
        # Initial weights are drawn from values, which fake tensors do not have: these are given to the network instead.
        weights = {name: torch.empty(weight.shape, requires_grad=True) for name, weight in network.named_parameters()}
        buffers = {name: torch.empty(buffer.shape, dtype=buffer.dtype) for name, buffer in network.named_buffers()}
        average = [torch.empty(weight.shape) for weight in weights.values()] if train.ema_decay else []
        optimizer = build_optimizer(weights.items(), train)
        inputs = torch.empty(images, model.in_channels, model.img_size, model.img_size)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
            logits = functional_call(network, {**weights, **buffers}, (inputs,))
        F.cross_entropy(logits.float(), torch.empty(images, dtype=torch.long)).backward()
        optimizer.step()
        del average
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that operations made and that are still there."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, made)
        return made

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._known.add(storage._cdata)
            self._now += storage.nbytes()
            self.peak = max(self.peak, self._now)
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, storage: int, nbytes: int) -> None:
        self._known.discard(storage)
        self._now -= nbytes


def inference_memory(model: ModelConfig) -> int:
    """Bytes that inference takes for each image at most, in float32, by what there is at a time of each kind of tensor,
    attention weights included, since any kernel may fall back to them."""
    attention = 3 * model.num_heads * model.num_tokens**2 if model.has_attention else 0
    block = model.num_tokens * (8 * model.embed_dim + 3 * model.mlp_dim) + attention
    widest = max(model.embed_dim, model.tokenizer_dim)
    return 4 * max(block, 4 * model.img_size**2 * widest)
