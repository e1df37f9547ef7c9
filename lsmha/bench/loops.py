"""Training loops to compare: this package's, and the one a user writes around a network of somebody else's."""

from __future__ import annotations

from typing import Literal, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from lsmha.bench.peers import vit_pytorch_cct
from lsmha.bench.random_data import random_dataset
from lsmha.config import AugmentConfig, ModelConfig, TrainConfig
from lsmha.data import Dataset, normalise
from lsmha.stopwatch import seconds_of
from lsmha.training import Trainer

LoopName = Literal["lsmha", "vit-pytorch"]


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
        self.num_params = _count(self._trainer.model)

    def run(self) -> float:
        return self._images / self._trainer.run_epoch().images_per_s


class PlainLoop:
    """A network and an AdamW as they come, on batches that are in the device's memory already, normalised: the loop
    has nothing else to do."""

    def __init__(
        self, network: nn.Module, model: ModelConfig, train: TrainConfig, *, steps: int, device: torch.device
    ) -> None:
        dataset = _images_for(model, train.batch_size * steps)
        inputs = normalise(dataset.train.images, dataset.mean, dataset.std).to(device)
        self._batches = list(
            zip(inputs.split(train.batch_size), dataset.train.labels.to(device).split(train.batch_size), strict=True)
        )
        self._network = network.to(device).train()
        self._optimizer = torch.optim.AdamW(
            network.parameters(), lr=train.learning_rate, weight_decay=train.weight_decay
        )
        self._device, self._bf16 = device, train.precision == "bf16"
        self.num_params = _count(network)

    def run(self) -> float:
        return seconds_of(self._train, self._device)

    def _train(self) -> None:
        for inputs, labels in self._batches:
            with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bf16):
                loss = F.cross_entropy(self._network(inputs), labels)
            self._optimizer.zero_grad()
            loss.backward()
            self._optimizer.step()


def build_loop(name: LoopName, model: ModelConfig, train: TrainConfig, *, steps: int, device: torch.device) -> Loop:
    """The loop of that name, for so many steps a run.

    Raises:
        MissingPeerError: Its package is not installed.
    """
    torch.manual_seed(train.seed)
    if name == "lsmha":
        return LsmhaLoop(model, train, steps=steps, device=device)
    return PlainLoop(vit_pytorch_cct(model), model, train, steps=steps, device=device)


def _images_for(model: ModelConfig, count: int) -> Dataset:
    return random_dataset(
        train=count, num_classes=model.num_classes, img_size=model.img_size, in_channels=model.in_channels
    )


def _count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
