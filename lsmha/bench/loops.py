"""Training loops to compare: this package's, and the one a user writes around a network of somebody else's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lsmha.bench.baselines import timm_adamw, timm_loader, vit_pytorch_cct
from lsmha.bench.random_data import random_dataset
from lsmha.config import AugmentConfig, ModelConfig, TrainConfig
from lsmha.data import Dataset, normalize
from lsmha.devices.stopwatch import seconds_of
from lsmha.training import Trainer

LoopName = Literal["lsmha", "vit-pytorch", "timm", "timm, resident"]
"""This package's; vit-pytorch's network in a plain loop, on batches in the device's memory; the same network with
timm's optimizer and loader; with timm's optimizer, on batches in memory."""


class Loop(Protocol):
    """Trains a network on random images."""

    num_params: int

    def run(self) -> float:
        """Train some steps; returns their seconds."""


class LsmhaLoop:
    """`Trainer`, from the uint8 images of the data set to the updated weights, with flips and shifts on the way."""

    def __init__(self, model: ModelConfig, train: TrainConfig, *, steps: int, device: torch.device) -> None:
        dataset = _images_for(model, train.batch_size * steps)
        # Many epochs, so that the learning rate stays where it is.
        recipe = train.model_copy(
            update={"epochs": 1_000_000, "augment": AugmentConfig(flip=True, translate=model.img_size // 8)}
        )
        self._trainer = Trainer(model, recipe, dataset, device=device)
        self._images = train.batch_size * steps
        self.num_params = _count(self._trainer.state.model)

    def run(self) -> float:
        return self._images / self._trainer.run_epoch().images_per_s


class PlainLoop:
    """A network, an optimizer and batches as they come, and nothing else."""

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Iterable[tuple[Tensor, Tensor]],
        *,
        bf16: bool,
        device: torch.device,
    ) -> None:
        self._network, self._optimizer, self._batches = network.train(), optimizer, batches
        self._device, self._bf16 = device, bf16
        self.num_params = _count(network)

    def run(self) -> float:
        return seconds_of(self._train, self._device)

    def _train(self) -> None:
        for images, targets in self._batches:
            inputs, labels = images.to(self._device, non_blocking=True), targets.to(self._device, non_blocking=True)
            with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
                loss = F.cross_entropy(self._network(inputs), labels)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()


def build_loop(name: LoopName, model: ModelConfig, train: TrainConfig, *, steps: int, device: torch.device) -> Loop:
    """The loop of that name, for so many steps a run.

    Raises:
        MissingBaselineError: Its package is not installed.
    """
    torch.manual_seed(train.seed)
    if name == "lsmha":
        return LsmhaLoop(model, train, steps=steps, device=device)
    network = vit_pytorch_cct(model).to(device)
    dataset = _images_for(model, train.batch_size * steps)
    if name == "vit-pytorch":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(
            network.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay
        )
    else:
        optimizer = timm_adamw(network, learning_rate=train.learning_rate, weight_decay=train.weight_decay)
    if name == "timm":
        batches = timm_loader(dataset, batch_size=train.batch_size, device=device)
    else:
        batches = _resident_batches(dataset, train.batch_size, device)
    return PlainLoop(network, optimizer, batches, bf16=train.precision == "bf16", device=device)


def _resident_batches(dataset: Dataset, batch_size: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Batches that are in the device's memory already, normalized."""
    inputs = normalize(dataset.train.images, dataset.mean, dataset.std).to(device)
    return list(zip(inputs.split(batch_size), dataset.train.labels.to(device).split(batch_size), strict=True))


def _images_for(model: ModelConfig, count: int) -> Dataset:
    return random_dataset(
        train=count, num_classes=model.num_classes, img_size=model.img_size, in_channels=model.in_channels
    )


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
