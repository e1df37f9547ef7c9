"""One training run, epoch by epoch, on one rank or many."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, cast
from weakref import WeakKeyDictionary

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lsmha.config import ModelConfig, TrainConfig
from lsmha.data import Augmentation, Dataset
from lsmha.devices.compute_plan import ComputePlan, plan_training
from lsmha.errors import ConfigurationError, DamagedFileError, DivergenceError, MemoryShortageError
from lsmha.io.paths import AnyPath, RunPath, as_path
from lsmha.models import CCT, create_model
from lsmha.training.checkpoints import load_state, save_state
from lsmha.training.evaluation import evaluate
from lsmha.training.forward import Forward, training_forward
from lsmha.training.memory import fitting_plan
from lsmha.training.optimization import build_optimizer, learning_rate_at


@dataclass(frozen=True)
class EpochMetrics:
    """What one epoch did; losses are means per image, in nats."""

    epoch: int
    """Epochs done, counted from 1."""
    train_loss: float
    val_loss: float
    val_accuracy: float
    learning_rate: float
    """That of the epoch's last step."""
    seconds: float
    """Wall time of the epoch, evaluation included."""
    images_per_s: float
    """Training images per second over all ranks, evaluation excluded."""

    def asdict(self) -> dict[str, float]:
        return asdict(self)


class Trainer:
    """A training run that can stop after any epoch and go on exactly where it was.

    Everything random in epoch e (data order, dropout, augmentation) is drawn from generators seeded by (seed, e, rank),
    so model, optimizer and epoch number are the whole state. Where `torch.distributed` is initialized, each rank takes
    its share of every global batch and gradients are averaged: but for dropout and augmentation, the updates are those
    of one rank. (Batch norm sees the whole batch on GPUs, through SyncBatchNorm; on CPUs, which have none, each rank's
    own share.)

    It starts from freshly initialized weights, or from `model`, which it takes over. Where the device has `memory`
    bytes for it, a step that takes more is not begun.

    Raises:
        MemoryShortageError: However it is computed, a step takes more.
        ConfigurationError: batch_size exceeds the training images or is not a multiple of the ranks, or the model does
            not fit the images.
        ValueError: `model` is of another architecture than `model_config`.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        train_config: TrainConfig,
        dataset: Dataset,
        *,
        device: torch.device,
        model: CCT | None = None,
        memory: int | None = None,
    ) -> None:
        self.model_config, self.config, self.dataset, self.device = model_config, train_config, dataset, device
        distributed = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if distributed else 0
        self.world_size = dist.get_world_size() if distributed else 1
        self._check_fit()

        if model is None:
            with seeded(device, train_config.seed):
                model = create_model(model_config)
        elif model.config != model_config:
            raise ValueError(f"model must be of model_config, but differs: {_differences(model_config, model.config)}")
        self.model: CCT = model.to(device)
        self._replica: nn.Module = self.model
        if distributed:
            if device.type == "cuda":
                self.model = nn.SyncBatchNorm.convert_sync_batchnorm(self.model)
            self._replica = DistributedDataParallel(self.model, device_ids=[device] if device.type == "cuda" else None)
        self.optimizer = build_optimizer(self.model.named_parameters(), train_config)
        self._ema = (
            AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(train_config.ema_decay), use_buffers=True)
            if train_config.ema_decay
            else None
        )
        self._follow(self._plan_of_rank_0(memory))
        self.augment = Augmentation(train_config.augment, dataset.mean, dataset.std, dataset.num_classes)
        self.images, self.labels = _place(dataset, device)
        self.steps_per_epoch = len(dataset.train) // train_config.batch_size
        self.epoch = 0
        self.history: list[EpochMetrics] = []

    @property
    def evaluated_model(self) -> CCT:
        """The weights that are evaluated and saved: the moving average where there is one."""
        return cast(CCT, self._ema.module) if self._ema is not None else self.model

    @property
    def autocast_bf16(self) -> bool:
        """Whether the run computes in bfloat16 where that is safe."""
        return self.plan.precision == "bf16"

    def run_epoch(self) -> EpochMetrics:
        """Train one epoch and evaluate on the validation split.

        Raises:
            DivergenceError: The loss became NaN or infinite; the run is of no more use.
        """
        started = time.perf_counter()
        self._replica.train()
        loss_sum = torch.zeros((), device=self.device)
        learning_rate = 0.0
        with seeded(self.device, self.config.seed, self.epoch + 1, self.rank):
            for step, (inputs, targets) in enumerate(self._inputs()):
                learning_rate = self._set_learning_rate(step)
                loss_sum += self._train_step(inputs, targets)
        return self._end_epoch(loss_sum / self.steps_per_epoch, learning_rate, started)

    def _end_epoch(self, loss: Tensor, learning_rate: float, started: float) -> EpochMetrics:
        """Evaluate the weights that an epoch of steps has led to."""
        train_loss = self._mean_over_ranks(loss)
        trained = time.perf_counter()
        if not math.isfinite(train_loss):
            raise DivergenceError(self._describe_divergence("train_loss", train_loss))
        self._share_buffers()
        validation = evaluate(
            self.evaluated_model, self.dataset.val, self.dataset, device=self.device, bf16=self.autocast_bf16
        )
        if not math.isfinite(validation.loss):
            raise DivergenceError(self._describe_divergence("val_loss", validation.loss))
        self.epoch += 1
        metrics = EpochMetrics(
            epoch=self.epoch,
            train_loss=train_loss,
            val_loss=validation.loss,
            val_accuracy=validation.accuracy,
            learning_rate=learning_rate,
            seconds=time.perf_counter() - started,
            images_per_s=self.steps_per_epoch * self.config.batch_size / (trained - started),
        )
        self.history.append(metrics)
        return metrics

    def save(self, path: AnyPath) -> None:
        """Write the whole state, atomically; `load` goes on from it bitwise (on a CPU).

        Raises:
            OSError: The storage is full, read-only or gone; what was saved before stays.
        """
        state = {
            "recipe": self._recipe(),
            "epoch": self.epoch,
            "history": [metrics.asdict() for metrics in self.history],
            "plan": self.plan.to_dict(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "ema": None if self._ema is None else self._ema.state_dict(),
        }
        save_state(state, as_path(path))

    def load(self, path: AnyPath) -> list[RunPath]:
        """Take over the newest good state that `save` wrote for the same run.

        Returns:
            The damaged files of later states, which were passed over.

        Raises:
            FileNotFoundError: There is no checkpoint.
            DamagedFileError: Each file that there is is damaged.
            ConfigurationError: It is of another architecture, recipe or seed.
        """
        state, damaged = load_state(as_path(path), map_location=self.device)
        self.restore(state, path)
        return damaged

    def restore(self, state: Mapping[str, Any], origin: AnyPath) -> None:
        """Take over a state that was read from the checkpoint `origin`.

        Raises:
            ConfigurationError: It is of another architecture, recipe or seed.
        """
        for name, own in self._recipe().items():
            if state["recipe"][name] != own:
                raise ConfigurationError(
                    f"checkpoint {origin} is of another run: its {name} is {state['recipe'][name]}, not {own}"
                )
        self._follow(ComputePlan.from_dict(state["plan"]))  # the numbers go on as they began
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._ema is not None:
            self._ema.load_state_dict(state["ema"])
        self.epoch = state["epoch"]
        self.history = [EpochMetrics(**metrics) for metrics in state["history"]]

    def _check_fit(self) -> None:
        batch_size, data, model = self.config.batch_size, self.dataset, self.model_config
        if batch_size > len(data.train):
            raise ConfigurationError(
                f"batch_size <= training images must hold, but got {batch_size} > {len(data.train)}"
            )
        if batch_size % self.world_size:
            raise ConfigurationError(
                f"batch_size must be a multiple of the workers, but got {batch_size} for {self.world_size} workers"
            )
        for name in ("img_size", "in_channels", "num_classes"):
            wanted, got = getattr(data, name), getattr(model, name)
            if wanted != got:
                raise ConfigurationError(f"{name} must be {wanted} for data set {data.name}, but got {got}")

    def _recipe(self) -> dict[str, Any]:
        """What a checkpoint must have in common with the run that goes on from it."""
        return {
            "model": self.model_config.model_dump(mode="json"),
            "train": self.config.model_dump(mode="json"),
            "data": f"{self.dataset.name}, {len(self.dataset.train)} images, {self.dataset.fingerprint}",
        }

    def _plan_of_rank_0(self, memory: int | None) -> ComputePlan:
        plans: list[ComputePlan | MemoryShortageError | None] = [None]
        if self.rank == 0:
            try:
                plans = [self._fitting_plan(memory)]
            except MemoryShortageError as error:
                plans = [error]  # for all ranks: they would wait for this one
        if self.world_size > 1:
            dist.broadcast_object_list(plans, src=0, device=self.device)
        (plan,) = plans
        if isinstance(plan, MemoryShortageError):
            raise plan
        assert plan is not None
        return plan

    def _fitting_plan(self, memory: int | None) -> ComputePlan:
        plan = plan_training(self.model_config, self.config, device=self.device)
        if memory is None:
            return plan
        images = self.config.batch_size // self.world_size
        return fitting_plan(plan, self.model_config, self.config, images=images, device=self.device, memory=memory)

    def _follow(self, plan: ComputePlan) -> None:
        self.plan = plan
        """How the run is computed: as its first part was, if it went on from a checkpoint."""
        self._forward: Forward | None = None
        self.model.use_kernels(plan.attention)
        if self._ema is not None:
            self.evaluated_model.use_kernels(plan.attention)

    def _batches(self) -> Tensor:
        """Indices (steps, B) of this rank's share of each global batch of the epoch.

        The order depends on seed and epoch, not on the ranks.
        """
        generator = torch.Generator().manual_seed(_mix_seeds(self.config.seed, self.epoch + 1))
        order = torch.randperm(len(self.dataset.train), generator=generator).to(self.images.device)
        whole = order[: self.steps_per_epoch * self.config.batch_size].view(self.steps_per_epoch, -1)
        return whole[:, self.rank :: self.world_size]

    def _inputs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented images and targets of each batch of the epoch."""
        batches = self._batches()
        pixels = batches.shape[1] * self.images[0].numel()
        for some in batches.split(self.augment.batches_at_once(pixels)):
            images = self.images[some].to(self.device, non_blocking=True)
            labels = self.labels[some].to(self.device, non_blocking=True)
            distorted = self.augment.distort(images.flatten(0, 1)).view_as(images)
            for images_of_batch, labels_of_batch in zip(distorted, labels, strict=True):
                yield self.augment.normalize_and_mix(images_of_batch, labels_of_batch)

    def _train_step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        if self._forward is None:
            self._forward = self._forward_for(inputs)
        # A CUDA graph has its own casts of the weights: none are remembered outside it.
        remember = self.config.mode != "cuda-graph"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast_bf16, cache_enabled=remember):
            logits = self._forward(inputs)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.config.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.grad_clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip_norm)
        self.optimizer.step()
        if self._ema is not None:
            self._ema.update_parameters(self.model)
        return loss.detach()

    def _forward_for(self, images: Tensor) -> Forward:
        if self.world_size > 1:
            return self._replica
        kernels = self.plan.attention
        return training_forward(self.model, self.config.mode, kernels, images, bf16=self.autocast_bf16)

    def _set_learning_rate(self, step: int) -> float:
        """Set that of one of the epoch's steps; returns it."""
        learning_rate = learning_rate_at(
            self.epoch * self.steps_per_epoch + step,
            total_steps=self.config.epochs * self.steps_per_epoch,
            steps_per_epoch=self.steps_per_epoch,
            config=self.config,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        return learning_rate

    def _mean_over_ranks(self, value: Tensor) -> float:
        if self.world_size > 1:
            dist.all_reduce(value)
        return (value / self.world_size).item()

    def _describe_divergence(self, name: str, value: float) -> str:
        return (
            f"training diverged in epoch {self.epoch + 1} of {self.config.epochs}: {name} is {value} "
            f"(learning_rate={self.config.learning_rate:g}, optimizer={self.config.optimizer}, "
            f"precision={self.plan.precision}); lower learning_rate, or set grad_clip_norm or warmup_epochs"
        )

    def _share_buffers(self) -> None:
        """Give every rank the batch-norm statistics of rank 0, so that all evaluate the same network."""
        if self.world_size > 1:
            for buffer in self.evaluated_model.buffers():
                dist.broadcast(buffer, src=0)


def train(
    model_config: ModelConfig,
    train_config: TrainConfig,
    dataset: Dataset,
    *,
    device: torch.device,
    on_epoch_end: Callable[[Trainer, EpochMetrics], None] | None = None,
    resume_from: AnyPath | None = None,
    on_damage: Callable[[str], None] = warnings.warn,
    model: CCT | None = None,
    memory: int | None = None,
) -> Trainer:
    """Train to the end of the recipe, from the start or from a checkpoint, and return the finished run.

    `on_epoch_end` is called on every rank after each epoch; an exception from it ends the run. `model`, which is taken
    over, replaces the freshly initialized weights of the start. `memory` is what the device has for it, in bytes.

    The run goes on from the newest good state at `resume_from`, and starts over where there is none. `on_damage` gets
    one line, on every rank, when files there are damaged: which, and where the run goes on.

    Raises:
        MemoryShortageError: A step takes more than `memory`.
        ValueError: The settings do not fit the data, `model` is of another architecture, or `resume_from` is of
            another run.
        DivergenceError: The loss became NaN or infinite.
    """
    trainer = Trainer(model_config, train_config, dataset, device=device, model=model, memory=memory)
    if resume_from is not None:
        _resume(trainer, resume_from, on_damage)
    while trainer.epoch < train_config.epochs:
        metrics = trainer.run_epoch()
        if on_epoch_end is not None:
            on_epoch_end(trainer, metrics)
    return trainer


def _resume(trainer: Trainer, path: AnyPath, on_damage: Callable[[str], None]) -> None:
    try:
        damaged = trainer.load(path)
    except FileNotFoundError:
        return
    except DamagedFileError as error:
        on_damage(f"{error}; training starts over")
        return
    for file in damaged:
        on_damage(f"checkpoint {file} is damaged; training goes on from the one before, after epoch {trainer.epoch}")


_on_gpu: WeakKeyDictionary[Dataset, dict[torch.device, tuple[Tensor, Tensor]]] = WeakKeyDictionary()
"""Copies of training images, each as long as its data set lives: one training run after another uses them."""


def _place(dataset: Dataset, device: torch.device) -> tuple[Tensor, Tensor]:
    """The training images where batches are gathered: on the GPU when a quarter of its free memory holds them."""
    images, labels = dataset.train.images, dataset.train.labels
    if device.type != "cuda":
        return images, labels
    copies = _on_gpu.setdefault(dataset, {})
    if device not in copies:
        free, _ = torch.cuda.mem_get_info(device)
        if images.nbytes > free // 4:
            return images, labels
        copies[device] = images.to(device), labels.to(device)
    return copies[device]


def _differences(wanted: ModelConfig, got: ModelConfig) -> str:
    names = [name for name in ModelConfig.model_fields if getattr(wanted, name) != getattr(got, name)]
    return ", ".join(f"{name} must be {getattr(wanted, name)}, not {getattr(got, name)}" for name in names)


def _mix_seeds(*seeds: int) -> int:
    """One well-mixed 63-bit seed from several small ones; their number counts, or (1, 2) would be (1, 2, 0)."""
    return int(np.random.SeedSequence((len(seeds), *seeds)).generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def seeded(device: torch.device, *seeds: int) -> Iterator[None]:
    """Seed torch's global generators for the block and give them back as they were."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(_mix_seeds(*seeds))
        yield
