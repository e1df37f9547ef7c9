"""Points as numbers."""

from __future__ import annotations

import numpy as np

from orchestrator.search.front.features import structure_of


def test_numbers_count_by_rank_others_one_hot_and_what_has_no_effect_by_a_flag() -> None:
    points = [
        {"heads": 16, "kind": "a", "fused": True},
        {"heads": None, "kind": "b", "fused": False},
        {"heads": 1, "kind": "c", "fused": True},
        {"heads": 2, "kind": "a", "fused": True},
    ]
    assert structure_of(points).tolist() == [
        [1.0, 0, 1, 0, 0, 1, 0],
        [0.0, 1, 0, 1, 0, 0, 1],
        [0.0, 0, 0, 0, 1, 1, 0],
        [0.5, 0, 1, 0, 0, 1, 0],
    ]


def test_a_single_value_is_no_trouble() -> None:
    assert np.isfinite(structure_of([{"depth": 2}, {"depth": 2}])).all()
