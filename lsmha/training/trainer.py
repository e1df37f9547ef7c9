"""The training loop of one run, epoch by epoch, on one rank or many."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsmha.config import ModelConfig, TrainConfig
from lsmha.data import Dataset
from lsmha.devices.compute_plan import ComputePlan
from lsmha.errors import DamagedFileError
from lsmha.io.paths import AnyPath
from lsmha.models import CCT
from lsmha.training.batches import TrainingBatches
from lsmha.training.forward import Forward, training_forward
from lsmha.training.optimization import epoch_learning_rates, set_learning_rate
from lsmha.training.seeding import seeded
from lsmha.training.state import EpochMetrics, TrainState


class Trainer:
    """Trains one network; it can stop after any epoch, and its `state` go on exactly where it was.

    Everything random in epoch e (data order, dropout, augmentation) is drawn from generators seeded by (seed, e, rank),
    so model, optimizer and epoch number are the whole state. Where `torch.distributed` is initialized, each rank takes
    its share of every global batch and gradients are averaged: but for dropout and augmentation, the updates are those
    of one rank. (Batch norm sees the whole batch on GPUs, through SyncBatchNorm; on CPUs, which have none, each rank's
    own share.)

    Arguments and errors are those of `TrainState`.
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
        self.state = TrainState(model_config, train_config, dataset, device=device, model=model, memory=memory)
        self.batches = TrainingBatches(dataset, train_config, device=device)
        self._replica = self.state.ranks.replica(self.state.model, device)
        self._forward: Forward | None = None
        self._planned: ComputePlan | None = None

    def resume(self, path: AnyPath, *, on_damage: Callable[[str], None]) -> None:
        """Go on from the newest good state at `path`, and start over where there is none.

        `on_damage` gets one line, on every rank, when files there are damaged: which, and where the run goes on.

        Raises:
            ConfigurationError: It is the state of another run.
        """
        try:
            damaged = self.state.load(path)
        except FileNotFoundError:
            return
        except DamagedFileError as error:
            on_damage(f"{error}; training starts over")
            return
        for file in damaged:
            on_damage(
                f"checkpoint {file} is damaged; training goes on from the one before, after epoch {self.state.epoch}"
            )

    def run_epoch(self) -> EpochMetrics:
        """Train one epoch and evaluate on the validation split.

        Raises:
            DivergenceError: The loss became NaN or infinite; the run is of no more use.
        """
        state, config = self.state, self.state.config
        started = time.perf_counter()
        self._replica.train()
        loss_sum = torch.zeros((), device=state.device)
        epoch, steps = state.epoch + 1, self.batches.steps_per_epoch
        learning_rate = 0.0
        with seeded(state.device, config.seed, epoch, state.ranks.rank):
            batches = self.batches.of_epoch(seed=config.seed, epoch=epoch, ranks=state.ranks)
            rates = epoch_learning_rates(epoch, steps_per_epoch=steps, config=config)
            for (inputs, targets), learning_rate in zip(batches, rates, strict=True):
                set_learning_rate(state.optimizer, learning_rate)
                loss_sum += self._step(inputs, targets)
        return state.end_epoch(
            loss_sum / steps, learning_rate=learning_rate, images=steps * config.batch_size, started=started
        )

    def _step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        state, config = self.state, self.state.config
        if self._forward is None or self._planned != state.plan:
            self._forward, self._planned = self._forward_for(inputs), state.plan
        # A CUDA graph has its own casts of the weights: none are remembered outside it.
        remember = config.mode != "cuda-graph"
        with torch.autocast(
            state.device.type, dtype=torch.bfloat16, enabled=state.autocast_bf16, cache_enabled=remember
        ):
            logits = self._forward(inputs)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=config.label_smoothing)
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.grad_clip_norm is not None:
            nn.utils.clip_grad_norm_(state.model.parameters(), config.grad_clip_norm)
        state.optimizer.step()
        state.update_average()
        return loss.detach()

    def _forward_for(self, images: Tensor) -> Forward:
        state = self.state
        if state.ranks.world_size > 1:
            return self._replica
        kernels = state.plan.attention
        return training_forward(state.model, state.config.mode, kernels, images, bf16=state.autocast_bf16)


def train(
    model_config: ModelConfig,
    train_config: TrainConfig,
    dataset: Dataset,
    *,
    device: torch.device,
    on_epoch_end: Callable[[TrainState, EpochMetrics], None] | None = None,
    resume_from: AnyPath | None = None,
    on_damage: Callable[[str], None] = warnings.warn,
    model: CCT | None = None,
    memory: int | None = None,
) -> TrainState:
    """Train to the end of the recipe, from the start or from a checkpoint, and return what the run has come to.

    `on_epoch_end` is called on every rank after each epoch; an exception from it ends the run. `model`, which is taken
    over, replaces the freshly initialized weights of the start. `memory` is what the device has for it, in bytes.

    With `resume_from`, it goes on as `Trainer.resume` does.

    Raises:
        MemoryShortageError: A step takes more than `memory`.
        ConfigurationError: The settings do not fit the data, or `resume_from` is of another run.
        DivergenceError: The loss became NaN or infinite.
        ValueError: `model` is of another architecture.
    """
    trainer = Trainer(model_config, train_config, dataset, device=device, model=model, memory=memory)
    state = trainer.state
    if resume_from is not None:
        trainer.resume(resume_from, on_damage=on_damage)
    while state.epoch < train_config.epochs:
        metrics = trainer.run_epoch()
        state.reconsider_plan()
        if on_epoch_end is not None:
            on_epoch_end(state, metrics)
    return state
