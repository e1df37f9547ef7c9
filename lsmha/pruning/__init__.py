"""Pruning by what the analysis says that units stand for, with random controls of the same sparsity, and retraining.

found = connections(model.config, "andc")
masks = connection_masks(model.config, found, labels)
result = retrain(model, masks, train_config, dataset, device=device)
"""

from lsmha.pruning.connections import Connection, LayerKey, PruningMethod, connections, layer_units
from lsmha.pruning.masks import connection_masks, kept_fraction, kept_of_model, random_masks
from lsmha.pruning.retraining import PrunedResult, apply_masks, remove_masks, retrain

__all__ = [
    "Connection",
    "LayerKey",
    "PrunedResult",
    "PruningMethod",
    "apply_masks",
    "connection_masks",
    "connections",
    "kept_fraction",
    "kept_of_model",
    "layer_units",
    "random_masks",
    "remove_masks",
    "retrain",
]
