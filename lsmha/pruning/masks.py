"""Masks over the weights: by the labels that units share, and at random as a control.

K is the number of labels; True keeps a weight.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from lsmha.config import ModelConfig
from lsmha.models import CCT
from lsmha.pruning.connections import Connection, LayerKey, layer_units
from lsmha.shapes import Bool


def connection_masks(
    config: ModelConfig, connections: Sequence[Connection], labels: Mapping[LayerKey, Tensor]
) -> dict[str, Tensor]:
    """Keeps what connects units that share a label: keep[i, j] = any(labels_target[i] & labels_source[j]).

    The same rule for both methods. For AFCC (arXiv:2501.12880) the labels of a filter are those of all its clusters, so
    a kernel stays where both filters have a cluster label in common (the published code indexes a flattened list of
    clusters by filter number, which is this rule only if each filter has exactly one cluster). For ANDC
    (arXiv:2501.12900) they are its diagonal elements above the threshold. A weight of the classifier stays where its
    label is one of the source unit's.

    Args:
        config: The network.
        connections: Of this network; see `lsmha.pruning.connections`.
        labels: For each layer that the connections name, bool (units, K): the labels that each unit stands for.

    Returns:
        For each connected parameter a bool mask of its shape, on the CPU. Kernels are kept or removed whole; rows of
        the parameter that belong to no connection are all True.

    Raises:
        ValueError: A layer has no labels, or labels or connections do not fit the network.
    """
    labels = _checked(config, connections, labels)
    return _full_masks(config, connections, [_keep(connection, labels) for connection in connections])


def random_masks(
    config: ModelConfig,
    connections: Sequence[Connection],
    labels: Mapping[LayerKey, Tensor],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """The control: `connection_masks` for random clusters of the same size, with equal sparsity in each connection.

    Each unit gets as many labels as it has, but others, drawn by itself; the rule above then keeps a similar number of
    weights. Weights (whole kernels) are added or removed at random until each connection keeps exactly as many as it
    does by the true labels.

    Args:
        config, connections, labels: As for `connection_masks`.
        generator: A CPU generator; its seed makes the control.

    Raises:
        ValueError: As for `connection_masks`.
    """
    labels = _checked(config, connections, labels)
    permuted = {layer: _permuted(units, generator) for layer, units in labels.items()}
    keeps = [
        _with_count(_keep(connection, permuted), int(_keep(connection, labels).sum()), generator)
        for connection in connections
    ]
    return _full_masks(config, connections, keeps)


def kept_fraction(masks: Mapping[str, Tensor], connections: Iterable[Connection]) -> float:
    """Kept weights over all weights of these connections; rows outside them do not count.

    Raises:
        ValueError: There are no connections, or one has no mask.
    """
    kept = total = 0
    for connection in connections:
        if connection.parameter not in masks:
            raise ValueError(f"masks must cover all connections, but have none for {connection.parameter}")
        rows = masks[connection.parameter][slice(*connection.rows)]
        kept += int(rows.sum())
        total += rows.numel()
    if not total:
        raise ValueError("connections must not be empty: no weights, no fraction of them")
    return kept / total


def kept_of_model(model: nn.Module, masks: Mapping[str, Tensor]) -> float:
    """Parameters that the masks leave, over all parameters of the network, biases and norms included."""
    total = sum(parameter.numel() for parameter in model.parameters())
    return (total - sum(int((~mask).sum()) for mask in masks.values())) / total


def _checked(
    config: ModelConfig, connections: Sequence[Connection], labels: Mapping[LayerKey, Tensor]
) -> dict[LayerKey, Tensor]:
    """The labels of the connected layers, on the CPU, in the order in which connections first name them."""
    layers = dict.fromkeys(
        layer for connection in connections for layer in (connection.source, connection.target) if layer is not None
    )
    checked = {}
    for tap, block in layers:
        name, shape = f"({tap!r}, {block})", (layer_units(config, (tap, block)), config.num_classes)
        if (tap, block) not in labels:
            raise ValueError(f"labels must cover all connected layers, but have none for {name}")
        units = labels[tap, block]
        if units.dtype != torch.bool or units.shape != shape:
            raise ValueError(
                f"labels of layer {name} must be bool of shape (units, num_classes) = {shape}, "
                f"but got {units.dtype} of shape {tuple(units.shape)}"
            )
        checked[tap, block] = units.cpu()
    return checked


def _keep(connection: Connection, labels: Mapping[LayerKey, Bool[Tensor, "_ K"]]) -> Bool[Tensor, "targets sources"]:
    """Which weights or kernels of a connection stay, by target and source units."""
    source = labels[connection.source]
    if connection.target is None:
        return source.T
    return labels[connection.target].float() @ source.float().T > 0  # the number of shared labels


def _permuted(labels: Bool[Tensor, "units K"], generator: torch.Generator) -> Bool[Tensor, "units K"]:
    """The labels of each unit moved to others, each unit by its own permutation."""
    return labels.gather(1, torch.rand(labels.shape, generator=generator).argsort(dim=1))


def _with_count(
    keep: Bool[Tensor, "targets sources"], count: int, generator: torch.Generator
) -> Bool[Tensor, "targets sources"]:
    """`keep` with elements added or removed at random until it keeps `count`."""
    flat = keep.flatten().clone()
    surplus = int(flat.sum()) - count
    candidates = (flat if surplus > 0 else ~flat).nonzero().squeeze(1)
    flat[candidates[torch.randperm(len(candidates), generator=generator)[: abs(surplus)]]] = surplus < 0
    return flat.view(keep.shape)


def _full_masks(
    config: ModelConfig, connections: Sequence[Connection], keeps: Sequence[Bool[Tensor, "_ _"]]
) -> dict[str, Bool[Tensor, ...]]:
    """Masks of the parameters' own shapes from those of each connection, by target and source units."""
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in CCT(config).named_parameters()}
    masks: dict[str, Tensor] = {}
    for connection, keep in zip(connections, keeps, strict=True):
        name, (start, stop) = connection.parameter, connection.rows
        shape = shapes.get(name)
        if shape is None or not 0 <= start < stop <= shape[0] or keep.shape != (stop - start, shape[1]):
            raise ValueError(f"connections must be of this network, but {connection} does not fit it")
        mask = masks.setdefault(name, torch.ones(shape, dtype=torch.bool))
        mask[start:stop] = keep.view(*keep.shape, *[1] * (len(shape) - 2))
    return masks
