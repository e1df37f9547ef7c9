"""Several seeds of one network trained together: their parameters are stacked, and one step serves all of them.

Small networks leave most of a GPU idle, and most of a step's time goes into telling it what to do. A step of S stacked
networks tells it once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
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
from lsmha.training.batches import TrainingBatches
from lsmha.training.checkpoints import good_states
from lsmha.training.optimization import build_optimizer, epoch_learning_rates, set_learning_rate
from lsmha.training.seeding import RandomStream
from lsmha.training.state import EpochMetrics, TrainState


class StackedTrainer:
    """Trains one network from several seeds at once, on one device.

    Each seed has a `TrainState` in `states`, whose network is a view of the stacked one: it is saved, loaded, evaluated
    and exported as if it had been trained alone. Initial weights, order of images and augmentation are those of
    separate runs, so without dropout and stochastic depth the losses are theirs, too, up to rounding. Dropout is drawn
    for each seed apart, but not as a separate run draws it. `memory` is what the device has for all of them, in bytes.

    Raises:
        MemoryShortageError: A step of all seeds takes more than `memory`.
        ConfigurationError: The settings do not fit the data.
        ValueError: Seeds are missing or repeated.
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
        memory_of_each = None if memory is None else memory // len(seeds)
        self.states = [
            TrainState(model_config, recipe, dataset, device=device, memory=memory_of_each) for recipe in recipes
        ]
        self.config, self.device = train_config, device
        self.batches = TrainingBatches(dataset, train_config, device=device)
        networks = [state.model for state in self.states]
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
        epoch, steps = self.states[0].epoch + 1, self.batches.steps_per_epoch
        seeds = [state.config.seed for state in self.states]
        for state in self.states:
            state.model.train()
        self._network.train()
        noise = RandomStream(self.device, *seeds, epoch)
        losses = torch.zeros(len(seeds), device=self.device)
        learning_rate = 0.0
        rates = epoch_learning_rates(epoch, steps_per_epoch=steps, config=self.config)
        for (inputs, targets), learning_rate in zip(self._stacked_batches(seeds, epoch), rates, strict=True):
            set_learning_rate(self._optimizer, learning_rate)
            with noise.drawn_from():
                losses += self._step(inputs, targets)
        self._share_optimizer_state()
        images = steps * self.config.batch_size
        outcomes: list[EpochMetrics | DivergenceError] = []
        for state, loss in zip(self.states, losses / steps, strict=True):
            set_learning_rate(state.optimizer, learning_rate)
            try:
                outcomes.append(state.end_epoch(loss, learning_rate=learning_rate, images=images, started=started))
            except DivergenceError as error:
                state.epoch += 1  # it stays in the stack, and in step
                outcomes.append(error)
        return outcomes

    def _stacked_batches(self, seeds: Sequence[int], epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs (S, B, C, height, width) and targets of each step, those of each seed as it draws them alone."""
        ranks = self.states[0].ranks
        draws = [RandomStream(self.device, seed, epoch, ranks.rank) for seed in seeds]
        batches = [self.batches.of_epoch(seed=seed, epoch=epoch, ranks=ranks) for seed in seeds]
        for _ in range(self.batches.steps_per_epoch):
            inputs, targets = [], []
            for batches_of_seed, draws_of_seed in zip(batches, draws, strict=True):
                with draws_of_seed.drawn_from():
                    input_of_seed, target_of_seed = next(batches_of_seed)
                inputs.append(input_of_seed)
                targets.append(target_of_seed)
            yield torch.stack(inputs), torch.stack(targets)

    def resume(self, paths: Sequence[AnyPath], *, on_damage: Sequence[Callable[[str], None]] = ()) -> bool:
        """Go on from the latest epoch that every seed has a good state of, as `TrainState.save` wrote it.

        `on_damage` gets, for each seed, one line for each damaged file.

        Returns:
            Whether that worked, or there was no state at all and the stack is at its start. Otherwise the states are of
            different epochs, and the seeds are to be trained apart.

        Raises:
            ConfigurationError: A state is of another architecture, recipe or seed.
        """
        saved: list[dict[int, dict[str, Any]]] = []
        for index, path in enumerate(paths):
            damaged: list[RunPath] = []
            good = good_states(as_path(path), map_location=self.device, damaged=damaged)
            saved.append({state["epoch"]: state for state in good})
            for file in damaged:
                if on_damage:
                    on_damage[index](f"checkpoint {file} is damaged")
        if not any(saved):
            return True
        common = set(saved[0]).intersection(*saved[1:])
        plans = {str(state["plan"]) for by_epoch in saved for state in by_epoch.values()}
        if not common or len(plans) > 1:
            return False
        for own, by_epoch, path in zip(self.states, saved, paths, strict=True):
            own.restore(by_epoch[max(common)], path)
        self._stack_optimizer_state()
        return True

    def _stack_optimizer_state(self) -> None:
        parameters = [dict(state.model.named_parameters()) for state in self.states]
        for name, stacked in self._parameters.items():
            states = [
                state.optimizer.state.get(own[name], {}) for state, own in zip(self.states, parameters, strict=True)
            ]
            if all(states):
                self._optimizer.state[stacked] = {
                    # Adam's step number is one for all, momentum and its like are the stack's.
                    key: torch.stack([state[key] for state in states]) if value.ndim else value.clone()
                    for key, value in states[0].items()
                }
        self._share_optimizer_state()

    def _step(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """One step on inputs (S, B, C, height, width); returns the loss of each seed (S,)."""

        def network(parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
            logits: Tensor = functional_call(self._network, (parameters, buffers), (images,))
            return logits

        autocast_bf16 = self.states[0].autocast_bf16
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=autocast_bf16):
            logits = vmap(network, randomness="different")(self._parameters, self._buffers, inputs)
        losses = F.cross_entropy(
            logits.float().flatten(0, 1),
            targets.flatten(0, 1),
            label_smoothing=self.config.label_smoothing,
            reduction="none",
        ).view(len(self.states), -1)
        self._optimizer.zero_grad(set_to_none=True)
        losses.mean(dim=1).sum().backward()  # each seed's parameters are in its own loss only
        if self.config.grad_clip_norm is not None:
            self._clip(self.config.grad_clip_norm)
        self._optimizer.step()
        for state in self.states:
            state.update_average()
        return losses.detach().mean(dim=1)

    def _clip(self, max_norm: float) -> None:
        """`torch.nn.utils.clip_grad_norm_` for each seed."""
        gradients = [parameter.grad for parameter in self._parameters.values() if parameter.grad is not None]
        norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        factors = (max_norm / (norms + 1e-6)).clamp(max=1)
        for gradient in gradients:
            gradient *= factors.view(-1, *[1] * (gradient.ndim - 1))

    def _share_optimizer_state(self) -> None:
        """Let each seed's own optimizer, which makes no steps, have its part of the state, to be saved."""
        for index, state in enumerate(self.states):
            for name, parameter in state.model.named_parameters():
                stacked = self._optimizer.state.get(self._parameters[name])
                if stacked:
                    state.optimizer.state[parameter] = {
                        key: value[index] if value.ndim else value for key, value in stacked.items()
                    }


def _become_view(network: nn.Module, parameters: dict[str, Tensor], buffers: dict[str, Tensor], index: int) -> None:
    """Let a network's tensors be those at one place of the stacks."""
    for name, parameter in network.named_parameters():
        parameter.data = parameters[name].data[index]
    for name, _ in list(network.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        setattr(network.get_submodule(owner), leaf, buffers[name][index])
