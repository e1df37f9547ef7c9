"""Records whose values do not matter."""

from __future__ import annotations

from typing import Any

from orchestrator.run_folder.committee_rows import CommitteeSize
from orchestrator.run_folder.records import PrunedNetwork


def pruned_network(**values: Any) -> PrunedNetwork:
    """A retraining, with some values replaced."""
    return PrunedNetwork(
        **{
            "id": "t0000-s0",
            "method": "andc",
            "mask": "none",
            "threshold": None,
            "seed": 0,
            "kept_of_connections": 1.0,
            "kept_of_model": 1.0,
            "val_accuracy_masked": 0.5,
            "val_accuracy": 0.5,
            "test_accuracy": 0.5,
            "test_accuracy_before": 0.5,
            "epochs": 1,
            "learning_rate": 0.1,
            "num_heads": 1,
            "depth": 1,
            "num_conv_blocks": 0,
            "test_images": 10,
            **values,
        }
    )


def committee_size(**values: Any) -> CommitteeSize:
    """The committees of one size, with some values replaced."""
    return CommitteeSize(
        **{
            "group": "all",
            "rule": "softmax",
            "size": 2,
            "selection": "every subset",
            "num_committees": 1,
            "accuracy": 0.5,
            "lowest_accuracy": 0.5,
            "highest_accuracy": 0.5,
            **values,
        }
    )
