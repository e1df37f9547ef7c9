"""How a network is computed on a device: precision and attention kernels, by a short measurement."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, TypeVar, get_args

import torch
from torch.nn import functional as F

from lsmha.config import AttentionKernel, ModelConfig, TrainConfig
from lsmha.devices.hardware import supports_bf16
from lsmha.devices.stopwatch import computing_seconds_of, cpu_wait_s
from lsmha.models.attention import PADDED_TO, AttentionKernels, default_kernels
from lsmha.models.cct import CCT

Precision = Literal["bf16", "fp32"]
Candidate = TypeVar("Candidate", bound=Hashable)

PROBE_WEIGHTS = 2**27
"""Attention weights of a measurement at most, over all heads and images: other trials may share the memory. With fewer
images than a batch has, weights fit into caches that they do not fit into in training."""
PROBE_S = 0.1
"""How long candidates are timed, but at least `PROBE_TURNS[0]` times each, and at most `PROBE_TURNS[1]` times."""
PROBE_TURNS = (3, 20)
CLEARLY_FASTER = 0.9
"""Part of the default's time at which another candidate replaces it: noise must not decide."""
GIVE_UP_RATIO = 2.0
"""A candidate that took so many times as long as another one in its best turn is not timed again, but"""
GIVE_UP_AFTER = 2
"""not before so many turns: other work of the machine falls on one of them."""

PROMISE_TURNS = 2
"""How often the way that was chosen is timed for what is to be expected of it."""
DISTURBED = 0.25
"""Share of the time that threads waited for CPUs from which a measurement counts as disturbed."""


@dataclass(frozen=True)
class Promise:
    """What to expect of a plan."""

    images_per_s: float
    """In training, on one device that nothing else uses, at least: whole blocks of each kind are taken for as slow as
    all that was timed together, but neither the optimizer nor the data are in it."""
    waited: float
    """Share of the measurement's time in which its threads waited for CPUs that others had, from 0 to 1."""

    @property
    def disturbed(self) -> bool:
        """Whether other work had so much of the machine that the plan may not be the best one."""
        return self.waited > DISTURBED


@dataclass(frozen=True)
class ComputePlan:
    """How to train and evaluate a network."""

    precision: Precision
    """Autocast to bfloat16, or not."""
    attention: AttentionKernels
    promise: Promise | None = field(default=None, compare=False)
    """What the measurement that it was made by says of it; None where there was nothing to choose, or the plan is that
    of a run that goes on."""

    def to_dict(self) -> dict[str, str]:
        """Plain values, for a checkpoint; without the promise, which is of this machine and hour."""
        kernels = {f"{phase}_attention": kernel for phase, kernel in self.attention._asdict().items()}
        return {"precision": self.precision, **kernels}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ComputePlan:
        kernels = AttentionKernels(values["training_attention"], values["inference_attention"])
        return cls(values["precision"], kernels)


_plans: dict[tuple[ModelConfig, str, int, torch.device, int], ComputePlan] = {}
"""What was measured in this process: network, precision asked for, batch size, device and threads."""


def plan_training(
    model: ModelConfig, train: TrainConfig, *, device: torch.device, once_more: bool = False
) -> ComputePlan:
    """What the configurations ask for, and where they leave it open (`auto`), what is fastest on the device.

    Timed is a network of one block of each kind that `model` has, with its tokenizer: training steps for each precision
    that the device has arithmetic for and each attention kernel, then inference, with as many images as a batch has. It
    takes as long as some dozen steps, and is repeated in this process only if it is to be made `once_more`; that plan
    promises nothing, so it stays. The global random state is left as found.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 0
    probe = _probe_of(model)
    asked = (probe, train.precision, train.batch_size, device, threads)
    if once_more:
        _plans[asked] = replace(_measured_plan(*asked), promise=None)
    elif asked not in _plans:
        _plans[asked] = _measured_plan(*asked)
    plan = _plans[asked]
    if plan.promise is None:
        return plan
    repeated = max(1, model.num_conv_blocks, model.depth - model.num_conv_blocks)
    return replace(plan, promise=replace(plan.promise, images_per_s=plan.promise.images_per_s / repeated))


def fastest_inference(
    model: ModelConfig, *, batch_size: int, dtype: torch.dtype, device: torch.device
) -> AttentionKernel:
    """The attention kernel that `model` asks for, or the fastest one at inference in that type and batch size."""
    kernels = _kernels_to_try(model, device, training=False, bf16=dtype == torch.bfloat16)
    if len(kernels) == 1:
        return kernels[0]
    with torch.random.fork_rng(devices=[]), torch.inference_mode():
        network = CCT(_probe_of(model)).to(device, dtype).eval()
        images = _images(model, batch_size, device).to(dtype)
        return fastest({kernel: partial(_infer, network, images, kernel) for kernel in kernels}, device)


def training_candidates(
    model: ModelConfig, train: TrainConfig, device: torch.device
) -> list[tuple[Precision, AttentionKernel]]:
    """Precisions and attention kernels that the configurations leave open on the device."""
    return _training_candidates(model, train.precision, device)


def _training_candidates(
    model: ModelConfig, asked: str, device: torch.device
) -> list[tuple[Precision, AttentionKernel]]:
    precisions: list[Precision] = list(get_args(Precision)) if supports_bf16(device) else ["fp32"]
    if asked != "auto":
        precisions = [choice for choice in get_args(Precision) if choice == asked]
    return [
        (precision, kernel)
        for precision in precisions
        for kernel in _kernels_to_try(model, device, training=True, bf16=precision == "bf16")
    ]


def _measured_plan(
    model: ModelConfig, precision: str, batch_size: int, device: torch.device, threads: int
) -> ComputePlan:
    candidates = _training_candidates(model, precision, device)
    started, waited_before = time.perf_counter(), cpu_wait_s()
    images = _images(model, batch_size, device)
    labels = torch.arange(len(images), device=device) % model.num_classes
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        network = CCT(model).to(device)
        ways = {candidate: partial(_train, network.train(), images, labels, *candidate) for candidate in candidates}
        chosen, trained_by = fastest(ways, device)
        promise = None
        if len(ways) > 1:
            with suppress(RuntimeError):  # whichever is chosen fails: that is for its user to meet
                step_s = min(computing_seconds_of(ways[chosen, trained_by], device) for _ in range(PROMISE_TURNS))
                waited = (cpu_wait_s() - waited_before) / ((time.perf_counter() - started) * max(1, threads))
                promise = Promise(len(images) / step_s, min(max(waited, 0.0), 1.0))
        network.eval()
        with torch.inference_mode(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=chosen == "bf16"):
            inference = _kernels_to_try(model, device, training=False, bf16=chosen == "bf16")
            inferred_by = fastest({kernel: partial(_infer, network, images, kernel) for kernel in inference}, device)
    return ComputePlan(chosen, AttentionKernels(trained_by, inferred_by), promise)


def fastest(candidates: Mapping[Candidate, Callable[[], None]], device: torch.device) -> Candidate:
    """The candidate that takes least time; the first one, unless another is clearly faster.

    Ways that fail, for want of memory or of a kernel, are left out; if all do, it is the first one, whose failure is
    then for its user to meet.
    """
    default, *others = candidates
    if not others:
        return default
    least: dict[Candidate, float] = {}
    for candidate, work in candidates.items():
        try:
            work()
        except RuntimeError:
            continue
        least[candidate] = math.inf
    if not least:
        return default
    deadline = time.perf_counter() + PROBE_S
    running = list(least)
    for turn in range(1, PROBE_TURNS[1] + 1):
        # One after another, so that whatever else the machine does falls on all of them; it makes times longer, never
        # shorter.
        for candidate in running:
            least[candidate] = min(least[candidate], computing_seconds_of(candidates[candidate], device))
        if turn >= GIVE_UP_AFTER:
            limit = GIVE_UP_RATIO * min(least.values())
            running = [candidate for candidate in running if least[candidate] <= limit]
        if len(running) <= 1 or (turn >= PROBE_TURNS[0] and time.perf_counter() >= deadline):
            break
    best, first = min(least, key=least.__getitem__), next(iter(least))
    return best if least[best] <= CLEARLY_FASTER * least[first] else first


def _kernels_to_try(model: ModelConfig, device: torch.device, *, training: bool, bf16: bool) -> list[AttentionKernel]:
    """The default first."""
    default = default_kernels(device.type)[0 if training else 1]
    if model.attention != "auto":
        return [model.attention]
    if not model.has_attention:
        return [default]
    makes_a_difference: dict[AttentionKernel, bool] = {
        "materialized": True,
        "sdpa": True,
        "sdpa-padded": model.head_dim % PADDED_TO > 0,
        "sdpa-fp32": bf16,
    }
    return [default, *(kernel for kernel, does in makes_a_difference.items() if does and kernel != default)]


def _probe_of(model: ModelConfig) -> ModelConfig:
    """A network with one block of each kind of `model`'s: as fast by whatever the whole is fast by."""
    convs = min(1, model.num_conv_blocks)
    transformers = min(1, model.depth - model.num_conv_blocks)
    return model.model_copy(update={"depth": convs + transformers, "num_conv_blocks": convs, "drop_path": 0.0})


def _images(model: ModelConfig, batch_size: int, device: torch.device) -> torch.Tensor:
    """As many as are asked for, or as a measurement may have."""
    max_images = PROBE_WEIGHTS // (model.num_heads * model.num_tokens**2)
    shape = (max(1, min(batch_size, max_images)), model.in_channels, model.img_size, model.img_size)
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)


def _train(
    network: CCT, images: torch.Tensor, labels: torch.Tensor, precision: Precision, kernel: AttentionKernel
) -> None:
    network.use_kernels(AttentionKernels(kernel, kernel))
    with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=precision == "bf16"):
        logits = network(images)
    F.cross_entropy(logits.float(), labels).backward()
    network.zero_grad(set_to_none=True)


def _infer(network: CCT, images: torch.Tensor, kernel: AttentionKernel) -> None:
    network.use_kernels(AttentionKernels(kernel, kernel))
    network(images)
