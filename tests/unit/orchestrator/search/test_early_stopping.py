"""Which trials are ended early: by Ray Tune's schedulers, of what this session saw and what earlier ones recorded."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.config.sweep import SweepConfig
from orchestrator.search.early_stopping import EarlyStopping

ASHA = {"scheduler": "asha", "reduction_factor": 2, "grace_epochs": 1}
MEDIAN = {"scheduler": "median", "min_samples": 2, "grace_epochs": 1}


def stopping_of(search: dict[str, Any], metric: str = "val_accuracy", direction: str = "maximize") -> EarlyStopping:
    config = SweepConfig.model_validate(
        {
            "name": "a",
            "space": {"num_heads": [1, 2]},
            "train": {"epochs": 8, "warmup_epochs": 0},
            "objectives": [{"metric": metric, "direction": direction}],
            "search": search,
        }
    )
    found = EarlyStopping.of(config)
    assert found is not None
    return found


def epoch(number: int, value: Any, metric: str = "val_accuracy") -> dict[str, Any]:
    return {"epoch": number, metric: value}


def curve(*values: float) -> list[dict[str, Any]]:
    return [epoch(number, value) for number, value in enumerate(values, start=1)]


def test_fifo_ends_none() -> None:
    assert EarlyStopping.of(SweepConfig.model_validate({"name": "a", "space": {"num_heads": [1, 2]}})) is None


@pytest.mark.parametrize("search", [ASHA, MEDIAN], ids=["asha", "median"])
@pytest.mark.parametrize(
    ("metric", "direction", "good", "bad"),
    [("val_accuracy", "maximize", 0.9, 0.1), ("val_loss", "minimize", 0.1, 0.9)],
)
def test_the_worse_one_ends(search: dict[str, Any], metric: str, direction: str, good: float, bad: float) -> None:
    stopping = stopping_of(search, metric, direction)
    assert not stopping.stops("a", epoch(1, good, metric))
    assert not stopping.stops("b", epoch(1, good, metric))
    assert stopping.stops("c", epoch(1, bad, metric))
    assert not stopping.stops("d", epoch(1, good, metric))


def test_asha_judges_at_its_rungs_alone() -> None:
    stopping = stopping_of({**ASHA, "grace_epochs": 2})  # 2, 4 and 8
    stopping.remember("a", curve(0.5, 0.6, 0.7, 0.8))
    assert not stopping.stops("b", epoch(1, 0.1))
    assert not stopping.stops("b", epoch(2, 0.65))
    assert not stopping.stops("b", epoch(3, 0.1))
    assert stopping.stops("b", epoch(4, 0.7))


def test_median_waits_for_others_to_compare_with() -> None:
    stopping = stopping_of(MEDIAN)
    assert not stopping.stops("a", epoch(1, 0.9))
    assert not stopping.stops("b", epoch(1, 0.1))  # there is one other


@pytest.mark.parametrize("search", [ASHA, MEDIAN], ids=["asha", "median"])
def test_what_an_earlier_session_recorded_counts_as_if_it_was_seen(search: dict[str, Any]) -> None:
    curves = {"a": curve(0.5, 0.6, 0.7), "b": curve(0.4, 0.5, 0.8), "c": curve(0.3)}
    seen, told = stopping_of(search), stopping_of(search)
    for number in range(3):
        for name, values in curves.items():
            if number < len(values):
                seen.stops(name, values[number])
    for name, values in curves.items():
        told.remember(name, values)
    for number, value in enumerate((0.45, 0.55, 0.65), start=1):
        assert seen.stops("d", epoch(number, value)) == told.stops("d", epoch(number, value))
    assert told.stops("e", epoch(1, 0.1))


@pytest.mark.parametrize("search", [ASHA, MEDIAN], ids=["asha", "median"])
def test_a_run_that_goes_on_is_judged_from_there(search: dict[str, Any]) -> None:
    stopping = stopping_of(search)
    stopping.remember("a", curve(0.5, 0.6, 0.7, 0.8))
    stopping.remember("b", curve(0.5, 0.6, 0.7, 0.8))
    stopping.remember("c", curve(0.1, 0.1, 0.1))  # it was ahead of those that it is compared with now
    assert not stopping.stops("c", epoch(3, 0.1))  # known already
    assert stopping.stops("c", epoch(4, 0.1))


@pytest.mark.parametrize("search", [ASHA, MEDIAN], ids=["asha", "median"])
@pytest.mark.parametrize("value", [None, "0.1", float("nan"), float("-inf")])
def test_what_is_no_number_is_not_compared(search: dict[str, Any], value: Any) -> None:
    stopping = stopping_of(search)
    for name in ("a", "b"):
        stopping.remember(name, curve(0.5))
    assert not stopping.stops("c", epoch(1, value))
    assert not stopping.stops("c", {"epoch": None, "val_accuracy": 0.1})
    assert not stopping.stops("d", epoch(1, 0.6))  # those numbers have spoiled nothing
