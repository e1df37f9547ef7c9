"""Latency in rounds: which rounds count, and what becomes of their measurements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lsmha.latency import LatencyMeasurement, Round, measure_in_rounds


def row(latency_ms: float, **fields: Any) -> LatencyMeasurement:
    values: dict[str, Any] = {
        "batch_size": 1,
        "latency_ms": latency_ms,
        "latency_p25_ms": 0.9 * latency_ms,
        "latency_p75_ms": 1.1 * latency_ms,
        "latency_p90_ms": 2 * latency_ms,
        "iterations": 30,
        "processes": 1,
        "converged": True,
        "undisturbed": True,
        "mode": "eager",
        "dtype": "fp32",
        "device": "d",
        "threads": 1,
        "attention": "materialized",
        "torch_version": "2",
    }
    return LatencyMeasurement(**values | fields)


def replayed(*rounds: Round) -> tuple[Callable[[], Round], list[Round]]:
    """Makes these rounds, and which are left."""
    left = list(rounds)
    return lambda: left.pop(0), left


def test_measurements_are_over_processes() -> None:
    measure, _ = replayed(
        *(Round(1.0, [[row(ms), row(10 * ms, batch_size=8, converged=ms < 5)], [row(7.0)]]) for ms in (3, 1, 2, 5, 4))
    )
    first, second = measure_in_rounds(measure, 5)
    small, large = first
    assert isinstance(small, LatencyMeasurement)
    assert isinstance(large, LatencyMeasurement)
    assert (small.latency_ms, small.latency_p25_ms, small.latency_p75_ms, small.latency_p90_ms) == (3, 2, 4, 6)
    assert (small.processes, small.iterations, small.converged, small.undisturbed) == (5, 150, True, True)
    assert (large.batch_size, large.latency_ms, large.converged) == (8, 30, False)
    assert isinstance(second, list)
    assert second[0].latency_p25_ms == second[0].latency_p75_ms == 7.0


def test_a_round_in_which_the_machine_was_another_does_not_count() -> None:
    rounds = [
        Round(reference, [[row(ms)]]) for reference, ms in ((1.0, 3), (2.0, 6), (1.09, 3.2), (0.95, 2.8), (1.0, 3))
    ]
    measure, left = replayed(*rounds)
    ((found,),) = measure_in_rounds(measure, 3)
    assert isinstance(found, LatencyMeasurement)
    assert (found.processes, found.latency_ms, found.reference_ms) == (3, 3, 1.0)
    assert len(left) == 1


def test_a_machine_that_never_settles_makes_twice_the_rounds() -> None:
    measure, left = replayed(*(Round(1.5**number, [[row(1.0)]]) for number in range(9)))
    ((found,),) = measure_in_rounds(measure, 3)
    assert isinstance(found, LatencyMeasurement)
    assert (found.processes, len(left)) == (1, 3)
    assert (found.latency_p25_ms, found.latency_p75_ms) == (0.9, 1.1)  # of its passes, there being one process


def test_a_network_that_cannot_be_measured_has_no_measurement() -> None:
    measure, _ = replayed(Round(1.0, [[row(1.0)], [row(2.0)]]), Round(1.0, ["OutOfMemoryError: no", [row(2.0)]]))
    failed, (found,) = measure_in_rounds(measure, 2)
    assert failed == "OutOfMemoryError: no"
    assert isinstance(found, LatencyMeasurement)
    assert found.latency_ms == 2


def test_processes_that_chose_another_kernel_are_left_out() -> None:
    other = row(1.0, attention="sdpa (flash)")
    measure, _ = replayed(*(Round(1.0, [[measured]]) for measured in (row(3.0), other, row(5.0))))
    ((found,),) = measure_in_rounds(measure, 3)
    assert isinstance(found, LatencyMeasurement)
    assert (found.attention, found.latency_ms, found.processes) == ("materialized", 4.0, 2)
