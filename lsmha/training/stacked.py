"""Several seeds of one network trained together: their parameters are stacked, and one step serves all of them.

Small networks leave most of a GPU idle, and most of a step's time goes into telling it what to do. A step of S stacked
networks tells it once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F

from lsmha.config import ModelConfig, TrainConfig
from lsmha.data import Dataset
from lsmha.errors import DivergenceError
from lsmha.io.paths import AnyPath, RunPath, as_path
from lsmha.training.checkpoints import good_states
from lsmha.training.optimization import build_optimizer
from lsmha.training.trainer import EpochMetrics, Trainer, seeded


class StackedTrainer:
    """Trains one network from several seeds at once, on one device.

    Each seed has a `Trainer` of its own in `trainers`, whose network is a view of the stacked one. It is there to save,
    load, evaluate and export as if it had been trained alone; only its `run_epoch` is not for use. Initial weights,
    order of images and augmentation are those of separate runs, so without dropout and stochastic depth the losses are
    theirs, too, up to rounding. Dropout is drawn for each seed apart, but not as a separate run draws it. `memory` is
    what the device has for all of them, in bytes.

    Raises:
        MemoryShortageError: A step of all seeds takes more than `memory`.
        ValueError: Seeds are missing or repeated, or the settings do not fit the data.
    """

    def __init__(
        self,
        model_config: ModelConfig,
        train_config: TrainConfig,
        seeds: Sequence[int],
        dataset: Dataset,
        *,
        device: torch.device,
        memory: int | None = None,
    ) -> None:
        if not seeds or len(set(seeds)) < len(seeds):
            raise ValueError(f"seeds must be one or more distinct numbers, but got {list(seeds)}")
        recipes = [train_config.model_copy(update={"seed": seed}) for seed in seeds]
        of_each = None if memory is None else memory // len(seeds)
        self.trainers = [Trainer(model_config, recipe, dataset, device=device, memory=of_each) for recipe in recipes]
        self.config, self.device = train_config, device
        networks = [trainer.model for trainer in self.trainers]
        self._network = deepcopy(networks[0]).to("meta")
        self._parameters, self._buffers = stack_module_state(networks)
        for index, network in enumerate(networks):
            _become_view(network, self._parameters, self._buffers, index)
        self._optimizer = build_optimizer(self._parameters.items(), train_config, stacked=True)

    def run_epoch(self) -> list[EpochMetrics | DivergenceError]:
        """Train one epoch and evaluate each seed on the validation split.

        Returns:
            For each seed its metrics, or the error of one that diverged; the others are not touched by that.
        """
        started = time.perf_counter()
        leader = self.trainers[0]
        for trainer in self.trainers:
            trainer.model.train()
        self._network.train()
        draws = [_Draws(self.device, trainer.config.seed, trainer.epoch + 1, trainer.rank) for trainer in self.trainers]
        noise = _Draws(self.device, *(trainer.config.seed for trainer in self.trainers), leader.epoch + 1)
        losses = torch.zeros(len(self.trainers), device=self.device)
        learning_rate = 0.0
        streams = [trainer._inputs() for trainer in self.trainers]
        for step in range(leader.steps_per_epoch):
            learning_rate = leader._set_learning_rate(step)
            inputs, targets = [], []
            for stream, own in zip(streams, draws, strict=True):
                with own.at_work():
                    one_input, one_target = next(stream)
                inputs.append(one_input)
                targets.append(one_target)
            with noise.at_work():
                losses += self._train_step(torch.stack(inputs), torch.stack(targets), learning_rate)
        outcomes: list[EpochMetrics | DivergenceError] = []
        for trainer, loss in zip(self.trainers, losses / leader.steps_per_epoch, strict=True):
            try:
                outcomes.append(trainer._end_epoch(loss, learning_rate, started))
            except DivergenceError as error:
                trainer.epoch += 1  # it stays in the stack, and in step
                outcomes.append(error)
        self._share_optimizer_state()
        return outcomes

    def resume(self, paths: Sequence[AnyPath], *, on_damage: Sequence[Callable[[str], None]] = ()) -> bool:
        """Go on from the latest epoch that every seed has a good state of, as `Trainer.save` wrote it.

        `on_damage` gets, for each seed, one line for each damaged file.

        Returns:
            Whether that worked, or there was no state at all and the stack is at its start. Otherwise the states are of
            different epochs, and the seeds are to be trained apart.

        Raises:
            ConfigurationError: A state is of another architecture, recipe or seed.
        """
        states: list[dict[int, dict[str, Any]]] = []
        for index, path in enumerate(paths):
            damaged: list[RunPath] = []
            good = good_states(as_path(path), map_location=self.device, damaged=damaged)
            states.append({state["epoch"]: state for state in good})
            for file in damaged:
                if on_damage:
                    on_damage[index](f"checkpoint {file} is damaged")
        if not any(states):
            return True
        common = set(states[0]).intersection(*states[1:])
        plans = {str(state["plan"]) for by_epoch in states for state in by_epoch.values()}
        if not common or len(plans) > 1:
            return False
        for trainer, by_epoch, path in zip(self.trainers, states, paths, strict=True):
            trainer.restore(by_epoch[max(common)], path)
        self._stack_optimizer_state()
        return True

    def _stack_optimizer_state(self) -> None:
        own = [dict(trainer.model.named_parameters()) for trainer in self.trainers]
        for name, stacked in self._parameters.items():
            states = [
                trainer.optimizer.state.get(parameters[name], {})
                for trainer, parameters in zip(self.trainers, own, strict=True)
            ]
            if all(states):
                self._optimizer.state[stacked] = {
                    # Adam's step number is one for all, momentum and its like are the stack's.
                    key: torch.stack([state[key] for state in states]) if value.ndim else value.clone()
                    for key, value in states[0].items()
                }
        self._share_optimizer_state()

    def _train_step(self, inputs: Tensor, targets: Tensor, learning_rate: float) -> Tensor:
        """One step on inputs (S, B, C, height, width); returns the loss of each seed (S,)."""

        def network(parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
            logits: Tensor = functional_call(self._network, (parameters, buffers), (images,))
            return logits

        leader = self.trainers[0]
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=leader.autocast_bf16):
            logits = vmap(network, randomness="different")(self._parameters, self._buffers, inputs)
        losses = F.cross_entropy(
            logits.float().flatten(0, 1),
            targets.flatten(0, 1),
            label_smoothing=self.config.label_smoothing,
            reduction="none",
        ).view(len(self.trainers), -1)
        self._optimizer.zero_grad(set_to_none=True)
        losses.mean(dim=1).sum().backward()  # each seed's parameters are in its own loss only
        if self.config.grad_clip_norm is not None:
            self._clip(self.config.grad_clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._optimizer.step()
        for trainer in self.trainers:
            if trainer._ema is not None:
                trainer._ema.update_parameters(trainer.model)
        return losses.detach().mean(dim=1)

    def _clip(self, max_norm: float) -> None:
        """`torch.nn.utils.clip_grad_norm_` for each seed."""
        gradients = [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        factors = (max_norm / (norms + 1e-6)).clamp(max=1)
        for gradient in gradients:
            gradient *= factors.view(-1, *[1] * (gradient.ndim - 1))

    def _share_optimizer_state(self) -> None:
        """Let the trainers' own optimizers, which make no steps, have their part of the state, to be saved."""
        for index, trainer in enumerate(self.trainers):
            for name, parameter in trainer.model.named_parameters():
                state = self._optimizer.state.get(self._parameters[name])
                if state:
                    trainer.optimizer.state[parameter] = {
                        key: value[index] if value.ndim else value for key, value in state.items()
                    }


class _Draws:
    """A random stream of its own on torch's global generators, seeded as `Trainer` seeds an epoch."""

    def __init__(self, device: torch.device, *seeds: int) -> None:
        self._device = device
        with seeded(device, *seeds):
            self._states = self._get()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Draw from this stream in the block; the global generators are as before behind it."""
        before = self._get()
        self._set(self._states)
        try:
            yield
        finally:
            self._states = self._get()
            self._set(before)

    def _get(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else states

    def _set(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self._device)


def _become_view(network: nn.Module, parameters: dict[str, Tensor], buffers: dict[str, Tensor], index: int) -> None:
    """Let a network's tensors be those at one place of the stacks."""
    for name, parameter in network.named_parameters():
        parameter.data = parameters[name].data[index]
    for name, _ in list(network.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(owner), leaf, buffers[name][index])
