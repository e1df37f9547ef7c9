"""Latency in rounds: which rounds count, and what becomes of their measurements."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lsmha.config import ModelConfig
from lsmha.latency import LatencyMeasurement, Measured, Round, measure_in_rounds


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


ONE = [ModelConfig()]
TWO = [ModelConfig(), ModelConfig(depth=1)]


def replayed(*rounds: Round) -> tuple[Callable[[Sequence[ModelConfig]], Round], list[Round]]:
    """Makes these rounds, and which are left."""
    left = list(rounds)
    return lambda _: left.pop(0), left


def test_measurements_are_over_processes() -> None:
    measure, _ = replayed(
        *(Round(1.0, [[row(ms), row(10 * ms, batch_size=8, converged=ms < 5)], [row(7.0)]]) for ms in (3, 1, 2, 5, 4))
    )
    first, second = measure_in_rounds(measure, TWO, 5)
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
    ((found,),) = measure_in_rounds(measure, ONE, 3)
    assert isinstance(found, LatencyMeasurement)
    assert (found.processes, found.latency_ms, found.reference_ms) == (3, 3, 1.0)
    assert len(left) == 1


def test_a_machine_that_never_settles_makes_twice_the_rounds() -> None:
    measure, left = replayed(*(Round(1.5**number, [[row(1.0)]]) for number in range(9)))
    ((found,),) = measure_in_rounds(measure, ONE, 3)
    assert isinstance(found, LatencyMeasurement)
    assert (found.processes, len(left)) == (1, 3)
    assert (found.latency_p25_ms, found.latency_p75_ms) == (0.9, 1.1)  # of its passes, there being one process


def test_a_network_that_cannot_be_measured_has_no_measurement() -> None:
    measure, _ = replayed(Round(1.0, [[row(1.0)], [row(2.0)]]), Round(1.0, ["OutOfMemoryError: no", [row(2.0)]]))
    failed, (found,) = measure_in_rounds(measure, TWO, 2)
    assert failed == "OutOfMemoryError: no"
    assert isinstance(found, LatencyMeasurement)
    assert found.latency_ms == 2


def test_processes_that_chose_another_kernel_are_left_out() -> None:
    other = row(1.0, attention="sdpa (flash)")
    measure, _ = replayed(*(Round(1.0, [[measured]]) for measured in (row(3.0), other, row(5.0))))
    ((found,),) = measure_in_rounds(measure, ONE, 3)
    assert isinstance(found, LatencyMeasurement)
    assert (found.attention, found.latency_ms, found.processes) == ("materialized", 4.0, 2)


class Timed:
    """Times networks that take so many ms in each round in turn, and keeps which were asked for."""

    def __init__(
        self, latencies: Mapping[ModelConfig, Sequence[float | str]], references: Sequence[float] = ()
    ) -> None:
        self._latencies, self._references = latencies, references
        self.asked: list[list[int]] = []

    def __call__(self, models: Sequence[ModelConfig]) -> Round:
        number = len(self.asked)
        known = list(self._latencies)
        self.asked.append([known.index(model) for model in models])
        taken = [self._latencies[model][number % len(self._latencies[model])] for model in models]
        reference = self._references[number] if self._references else 1.0
        return Round(reference, [value if isinstance(value, str) else [row(value)] for value in taken])


MODELS = [ModelConfig(depth=depth) for depth in (1, 2, 3, 4)]


def processes(found: Sequence[Measured]) -> list[int]:
    return [rows[0].processes for rows in found if not isinstance(rows, str)]


def test_networks_that_differ_from_all_others_are_in_the_fewest_rounds() -> None:
    timed = Timed(dict(zip(MODELS, ([1.0, 1.02], [2.0, 2.1], [2.15, 2.2], [5.0]), strict=True)))
    found = measure_in_rounds(timed, MODELS, 5, fewest=3)
    assert timed.asked == [[0, 1, 2, 3]] * 3 + [[1, 2]] * 2
    assert processes(found) == [3, 5, 5, 3]


def test_all_networks_are_in_all_rounds_unless_fewest_are_named() -> None:
    timed = Timed({MODELS[0]: [1.0], MODELS[1]: [9.0]})
    assert processes(measure_in_rounds(timed, MODELS[:2], 5)) == [5, 5]


def test_rounds_end_when_no_network_is_in_question() -> None:
    timed = Timed({MODELS[0]: [1.0], MODELS[1]: [9.0]})
    assert processes(measure_in_rounds(timed, MODELS[:2], 5, fewest=3)) == [3, 3]
    assert len(timed.asked) == 3


def test_a_network_that_spreads_over_another_stays_in_question() -> None:
    timed = Timed({MODELS[0]: [1.0, 3.0], MODELS[1]: [2.0]})
    assert processes(measure_in_rounds(timed, MODELS[:2], 5, fewest=2)) == [5, 5]


def test_rounds_that_do_not_count_settle_nothing() -> None:
    # The second and third were made by a machine that was another.
    timed = Timed({MODELS[0]: [1.0], MODELS[1]: [9.0]}, references=[1.0, 2.0, 0.5, 1.0, 1.0])
    assert processes(measure_in_rounds(timed, MODELS[:2], 5, fewest=3)) == [3, 3]
    assert len(timed.asked) == 5


def test_a_network_whose_rounds_turn_out_not_to_count_is_asked_for_again() -> None:
    # After two rounds the first is settled; then the machine becomes another, and stays so.
    timed = Timed({MODELS[0]: [1.0], MODELS[1]: [2.0], MODELS[2]: [2.0]}, references=[1.0, 1.0, 1.5, 1.5, 1.5, 1.5])
    found = measure_in_rounds(timed, MODELS[:3], 4, fewest=2)
    assert timed.asked == [[0, 1, 2]] * 2 + [[1, 2]] * 3 + [[0, 1, 2]]
    assert processes(found) == [1, 4, 4]


def test_a_network_that_failed_is_not_asked_for_again() -> None:
    timed = Timed({MODELS[0]: ["OutOfMemoryError: no"], MODELS[1]: [2.0], MODELS[2]: [2.0]})
    failed, *_ = measure_in_rounds(timed, MODELS[:3], 5, fewest=2)
    assert failed == "OutOfMemoryError: no"
    assert timed.asked == [[0, 1, 2]] * 2 + [[1, 2]] * 3
