"""What a training run is after some epochs: its weights and all that belongs to them, saved, restored and evaluated."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from lsmha.config import DATA_DEFINED, ModelConfig, TrainConfig
from lsmha.data import Dataset
from lsmha.devices.compute_plan import ComputePlan, plan_training
from lsmha.errors import ConfigurationError, DivergenceError, MemoryShortageError
from lsmha.io.paths import AnyPath, RunPath, as_path
from lsmha.models import CCT, create_model
from lsmha.training.checkpoints import load_state, save_state
from lsmha.training.evaluation import evaluate
from lsmha.training.memory import fitting_plan
from lsmha.training.optimization import build_optimizer
from lsmha.training.ranks import Ranks
from lsmha.training.seeding import seeded

SLOW_EPOCHS = 2
"""After so many epochs a plan is held against what it promised."""
FAR_UNDER = 1 / 5
"""Part of the promised images per second below which each of these epochs was too slow to be right. Between them are
optimizer and data, and, on a machine with three times as much to do as it has CPUs for, the others' share."""


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


class TrainState:
    """The state of one training run: network, optimizer, moving average, epochs done and how it is computed.

    It starts from freshly initialized weights, or from `model`, which it takes over. How it is computed is planned such
    that a step fits into `memory` bytes of the device, where that is given.

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
        self.ranks = Ranks.current()
        self._check_fit()
        if model is None:
            with seeded(device, train_config.seed):
                model = create_model(model_config)
        elif model.config != model_config:
            raise ValueError(f"model must be of model_config, but differs: {_differences(model_config, model.config)}")
        self.model = self.ranks.with_common_batch_norm(model.to(device), device)
        self.optimizer = build_optimizer(self.model.named_parameters(), train_config)
        self._average = (
            AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(train_config.ema_decay), use_buffers=True)
            if train_config.ema_decay
            else None
        )
        self._memory = memory
        self.use_plan(self._plan_of_rank_0())
        self.epoch = 0
        """Epochs done."""
        self.history: list[EpochMetrics] = []

    @property
    def evaluated_model(self) -> CCT:
        """The weights that are evaluated and saved: the moving average where there is one."""
        return cast(CCT, self._average.module) if self._average is not None else self.model

    @property
    def autocast_bf16(self) -> bool:
        """Whether the run computes in bfloat16 where that is safe."""
        return self.plan.precision == "bf16"

    def use_plan(self, plan: ComputePlan) -> None:
        """Compute as planned from now on."""
        self._epochs_by_plan = 0
        self.plan = plan
        """How the run is computed: as its first part was, if it went on from a checkpoint."""
        self.model.use_kernels(plan.attention)
        if self._average is not None:
            self.evaluated_model.use_kernels(plan.attention)

    def reconsider_plan(self) -> bool:
        """Measure once more how to compute, where the run stayed far under what its plan promised: after the
        `SLOW_EPOCHS`-th epoch by it, and not again. To be called after each epoch, by all ranks.

        Returns:
            Whether it was measured.
        """
        self._epochs_by_plan += 1
        if self.plan.promise is None or self._epochs_by_plan != SLOW_EPOCHS:
            return False
        best = max(metrics.images_per_s for metrics in self.history[-SLOW_EPOCHS:])
        slow = best < FAR_UNDER * self.ranks.world_size * self.plan.promise.images_per_s
        if not self.ranks.of_rank_0(slow, self.device):
            return False
        self.use_plan(self._plan_of_rank_0(once_more=True))
        return True

    def update_average(self) -> None:
        """Let the moving average, where there is one, take note of a step."""
        if self._average is not None:
            self._average.update_parameters(self.model)

    def end_epoch(self, loss: Tensor, *, learning_rate: float, images: int, started: float) -> EpochMetrics:
        """Evaluate the weights that an epoch of steps has led to, and count the epoch.

        Args:
            loss: Mean training loss of this rank, a scalar.
            learning_rate: That of the last step.
            images: Images of the epoch, over all ranks.
            started: When the epoch began, by `time.perf_counter`.

        Raises:
            DivergenceError: The loss became NaN or infinite; the run is of no more use.
        """
        train_loss = self.ranks.mean(loss)
        trained = time.perf_counter()
        if not math.isfinite(train_loss):
            raise DivergenceError(self._describe_divergence("train_loss", train_loss))
        self.ranks.share_buffers(self.evaluated_model)
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
            images_per_s=images / (trained - started),
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
            "ema": None if self._average is None else self._average.state_dict(),
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
        self.use_plan(ComputePlan.from_dict(state["plan"]))  # the numbers go on as they began
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self._average is not None:
            self._average.load_state_dict(state["ema"])
        self.epoch = state["epoch"]
        self.history = [EpochMetrics(**metrics) for metrics in state["history"]]

    def _check_fit(self) -> None:
        batch_size, data, workers = self.config.batch_size, self.dataset, self.ranks.world_size
        if batch_size > len(data.train):
            raise ConfigurationError(
                f"batch_size <= training images must hold, but got {batch_size} > {len(data.train)}"
            )
        if batch_size % workers:
            raise ConfigurationError(
                f"batch_size must be a multiple of the workers, but got {batch_size} for {workers} workers"
            )
        for name in DATA_DEFINED:
            wanted, got = getattr(data, name), getattr(self.model_config, name)
            if wanted != got:
                raise ConfigurationError(f"{name} must be {wanted} for data set {data.name}, but got {got}")

    def _recipe(self) -> dict[str, Any]:
        """What a checkpoint must have in common with the run that goes on from it."""
        return {
            "model": self.model_config.model_dump(mode="json"),
            "train": self.config.model_dump(mode="json"),
            "data": f"{self.dataset.name}, {len(self.dataset.train)} images, {self.dataset.fingerprint}",
        }

    def _plan_of_rank_0(self, *, once_more: bool = False) -> ComputePlan:
        plan: ComputePlan | MemoryShortageError | None = None
        if self.ranks.leads:
            try:
                plan = self._fitting_plan(once_more=once_more)
            except MemoryShortageError as error:
                plan = error  # for all ranks: they would wait for this one
        plan = self.ranks.of_rank_0(plan, self.device)
        if isinstance(plan, MemoryShortageError):
            raise plan
        assert plan is not None
        return plan

    def _fitting_plan(self, *, once_more: bool) -> ComputePlan:
        plan = plan_training(self.model_config, self.config, device=self.device, once_more=once_more)
        if self._memory is None:
            return plan
        images = self.config.batch_size // self.ranks.world_size
        return fitting_plan(
            plan, self.model_config, self.config, images=images, device=self.device, memory=self._memory
        )

    def _describe_divergence(self, name: str, value: float) -> str:
        return (
            f"training diverged in epoch {self.epoch + 1} of {self.config.epochs}: {name} is {value} "
            f"(learning_rate={self.config.learning_rate:g}, optimizer={self.config.optimizer}, "
            f"precision={self.plan.precision}); lower learning_rate, or set grad_clip_norm or warmup_epochs"
        )


def _differences(wanted: ModelConfig, got: ModelConfig) -> str:
    names = [name for name in ModelConfig.model_fields if getattr(wanted, name) != getattr(got, name)]
    return ", ".join(f"{name} must be {getattr(wanted, name)}, not {getattr(got, name)}" for name in names)
