"""Networks with masked weights, and their retraining with the masks applied at every step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lsmha.config import TrainConfig
from lsmha.data import Dataset
from lsmha.models import CCT
from lsmha.training import EpochMetrics, TrainState, evaluate, train


class WeightMask(nn.Module):
    """The weight where the mask is True, else 0; so is its gradient."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: Tensor) -> Tensor:
        # Selected, not multiplied: a product has -0.0 for negative weights and NaN for infinite ones.
        return torch.where(self.mask, weight, 0.0)


def apply_masks(model: CCT, masks: Mapping[str, Tensor]) -> None:
    """Mask parameters of the model in place: whatever an optimizer does, the network computes with zeros there.

    A masked weight becomes a function of the stored one (`torch.nn.utils.parametrize`). Momentum, weight decay and
    moving averages work on the stored one and cannot bring a removed weight back; checkpoints hold the masks too.

    Args:
        model: Plain, on any device.
        masks: By parameter name, bool of the parameter's shape, True where a weight is kept.

    Raises:
        ValueError: A mask is of no parameter, of one that is masked already, or of another shape or type. The model is
            then as it was.
    """
    parameters = dict(model.named_parameters())
    for name, mask in masks.items():
        if name not in parameters:
            raise ValueError(f"masks must be of plain parameters of the network, but it has no {name}")
        shape = tuple(parameters[name].shape)
        if mask.dtype != torch.bool or tuple(mask.shape) != shape:
            raise ValueError(
                f"the mask of {name} must be bool of shape {shape}, but got {mask.dtype} of {tuple(mask.shape)}"
            )
    for name, mask in masks.items():
        # In the weight's memory layout, or masking would hand convolutions kernels that are not channels-last.
        aligned = torch.empty_like(parameters[name], dtype=torch.bool, requires_grad=False).copy_(mask)
        module, _, leaf = name.rpartition(".")
        parametrize.register_parametrization(model.get_submodule(module), leaf, WeightMask(aligned))


def remove_masks(model: CCT) -> CCT:
    """A plain network with zeros where `model` has masks, which computes the same; `model` is left as it is.

    Its parameters have the names and the order of any other network's, for `save_model` and whatever else reads them.
    """
    with torch.device("meta"):  # no memory, and no random numbers for weights that are replaced
        plain = CCT(model.config)
    plain = plain.to_empty(device=next(model.parameters()).device)
    plain.load_state_dict({name: _current(model, name) for name in plain.state_dict()})
    return plain.train(model.training)


@dataclass(frozen=True)
class PrunedResult:
    """A pruned network after retraining; accuracies are in fp32, whatever precision it trained in."""

    model: CCT
    """Plain, in eval mode, on the training device; exactly zero where it is masked."""
    val_accuracy: float
    masked_val_accuracy: float
    """Right after masking, before any retraining."""


def retrain(
    model: CCT,
    masks: Mapping[str, Tensor],
    train_config: TrainConfig,
    dataset: Dataset,
    *,
    device: torch.device,
    on_epoch_end: Callable[[TrainState, EpochMetrics], None] | None = None,
) -> PrunedResult:
    """Mask a copy of a trained network and train it on, with the masks applied at every step.

    Args:
        model: Trained on `dataset`; stays as it is.
        masks: As for `apply_masks`.
        train_config: Recipe of the retraining; with a moving average, that is what is evaluated and returned.
        dataset: Its test images are not looked at.
        device: Where to train.
        on_epoch_end: As for `lsmha.training.train`; the state's model is the masked one.

    Raises:
        ValueError: The masks do not fit the network, or the recipe does not fit the data.
        DivergenceError: The loss became NaN or infinite.
    """
    masked = copy.deepcopy(model)
    apply_masks(masked, masks)
    masked_accuracy = evaluate(masked.to(device), dataset.val, dataset, device=device).accuracy
    trained = train(model.config, train_config, dataset, device=device, on_epoch_end=on_epoch_end, model=masked)
    pruned = remove_masks(trained.evaluated_model).eval()
    return PrunedResult(pruned, evaluate(pruned, dataset.val, dataset, device=device).accuracy, masked_accuracy)


def _current(model: CCT, name: str) -> Tensor:
    """What the model computes with under a name of the plain network's state: the masked weight where it is masked."""
    module, _, leaf = name.rpartition(".")
    value = getattr(model.get_submodule(module), leaf)
    assert isinstance(value, Tensor)
    return value.detach()
