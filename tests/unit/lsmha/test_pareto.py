"""Pareto fronts and hypervolume against brute force, by hand and on the edge cases."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lsmha.pareto import Direction, hypervolume, pareto_mask, pareto_mask_with_ties

ACCURACY_LATENCY: tuple[Direction, Direction] = ("maximize", "minimize")


def _brute_force_mask(values: np.ndarray, directions: tuple[Direction, ...]) -> np.ndarray:
    signs = np.array([1.0 if direction == "minimize" else -1.0 for direction in directions])
    costs = values * signs
    return np.array([not any((other <= cost).all() and (other < cost).any() for other in costs) for cost in costs])


@pytest.mark.parametrize("directions", list(itertools.product(("maximize", "minimize"), repeat=3)))
def test_front_equals_brute_force(directions: tuple[Direction, ...]) -> None:
    # Few distinct values, so that ties in one objective and equal points both occur.
    values = np.random.default_rng(0).integers(0, 6, size=(60, 3)).astype(float)
    mask = pareto_mask(values, directions)
    assert 0 < mask.sum() < len(values)
    np.testing.assert_array_equal(mask, _brute_force_mask(values, directions))


def test_front_of_accuracy_and_latency() -> None:
    values = [[0.80, 5.0], [0.70, 2.0], [0.75, 6.0], [0.70, 3.0], [0.90, 9.0]]
    assert pareto_mask(values, ACCURACY_LATENCY).tolist() == [True, True, False, False, True]


def test_equal_points_share_their_fate() -> None:
    values = [[0.8, 5.0], [0.8, 5.0], [0.7, 6.0], [0.7, 6.0]]
    assert pareto_mask(values, ACCURACY_LATENCY).tolist() == [True, True, False, False]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, 1])
def test_non_finite_points_are_off_the_front_and_hide_nobody(bad: float, column: int) -> None:
    values = np.array([[0.5, 5.0], [1.0, 1.0]])
    values[1, column] = bad
    assert pareto_mask(values, ACCURACY_LATENCY).tolist() == [True, False]
    assert hypervolume(values, ACCURACY_LATENCY, (0.0, 10.0)) == pytest.approx(0.5 * 5.0)


def test_no_points() -> None:
    mask = pareto_mask(np.empty((0, 2)), ACCURACY_LATENCY)
    assert mask.shape == (0,)
    assert mask.dtype == bool
    assert hypervolume(np.empty((0, 2)), ACCURACY_LATENCY, (0.0, 1.0)) == 0.0


def test_only_non_finite_points() -> None:
    assert pareto_mask([[np.nan, 1.0]], ACCURACY_LATENCY).tolist() == [False]
    assert hypervolume([[np.nan, 1.0]], ACCURACY_LATENCY, (0.0, 10.0)) == 0.0


def test_one_objective_has_one_best_value() -> None:
    assert pareto_mask([[3.0], [1.0], [3.0]], ["maximize"]).tolist() == [True, False, True]
    assert hypervolume([[3.0], [1.0]], ["maximize"], [0.5]) == pytest.approx(2.5)


def test_integers_are_compared_as_numbers() -> None:
    assert pareto_mask(np.array([[1, 2], [2, 2]]), ACCURACY_LATENCY).tolist() == [False, True]


def test_hypervolume_is_the_area_of_the_staircase() -> None:
    # Two boxes from the reference (0 accuracy, 10 ms): 0.8 x 5 and 0.5 x 8, which share 0.5 x 5.
    values = [[0.8, 5.0], [0.5, 2.0]]
    expected = 0.8 * 5 + 0.5 * 8 - 0.5 * 5
    assert hypervolume(values, ACCURACY_LATENCY, (0.0, 10.0)) == pytest.approx(expected)
    dominated_and_beyond = [*values, [0.4, 6.0], [0.9, 11.0], [-0.1, 1.0]]
    assert hypervolume(dominated_and_beyond, ACCURACY_LATENCY, (0.0, 10.0)) == pytest.approx(expected)


def test_arguments_are_left_alone() -> None:
    values = np.array([[0.8, 5.0], [0.5, 2.0]])
    before = values.copy()
    pareto_mask(values, ACCURACY_LATENCY)
    hypervolume(values, ACCURACY_LATENCY, (0.0, 10.0))
    np.testing.assert_array_equal(values, before)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("values", "directions", "message"),
    [
        ([[1.0, 2.0]], ["maximize"], r"values must have shape .* \(1, 2\) and directions=\['maximize'\]"),
        ([1.0, 2.0], ["maximize", "minimize"], r"values must have shape .* \(2,\)"),
        (np.empty((3, 0)), [], r"values must have shape .* \(3, 0\)"),
        ([[1.0]], ["max"], "directions must be .* but got 'max'"),
    ],
)
def test_bad_input_is_named(values: object, directions: list[Direction], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pareto_mask(values, directions)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=message):
        hypervolume(values, directions, [0.0] * len(directions))  # type: ignore[arg-type]


@pytest.mark.parametrize("reference", [(0.0,), (0.0, np.nan), (0.0, np.inf), (0.0, 1.0, 2.0)])
def test_bad_reference_is_named(reference: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="reference must be 2 finite numbers, but got"):
        hypervolume([[1.0, 2.0]], ACCURACY_LATENCY, reference)


def _with_ties(points: list[tuple[float, float]], spread: float) -> list[bool]:
    """Of accuracies and latencies, the latter known to within `spread`."""
    latencies = np.array([latency for _, latency in points])
    mask = pareto_mask_with_ties(points, ACCURACY_LATENCY, measured=1, low=latencies - spread, high=latencies + spread)
    return mask.tolist()


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(0.8, 5.0), (0.7, 4.9)], [True, False]),  # hardly faster, and worse
        ([(0.8, 5.0), (0.7, 4.7)], [True, True]),  # clearly faster
        ([(0.8, 5.0), (0.8, 4.9)], [True, True]),  # nobody can say which is better
        ([(0.8, 5.0), (0.8, 4.7)], [False, True]),
        ([(0.8, 5.0), (0.8, 5.0)], [True, True]),
        # Each ties with the next; the last one is clearly faster than the first, and beaten by none on the front.
        ([(0.8, 5.0), (0.7, 4.85), (0.6, 4.7)], [True, False, True]),
        ([(0.6, 4.7), (0.7, 4.85), (0.8, 5.0)], [True, False, True]),
        ([(0.8, 5.0), (0.7, float("nan"))], [True, False]),
    ],
)
def test_latencies_that_tie(points: list[tuple[float, float]], expected: list[bool]) -> None:
    assert _with_ties(points, 0.1) == expected


def test_without_spread_nothing_ties() -> None:
    points = np.random.default_rng(0).integers(0, 8, size=(40, 2)).astype(float)
    assert _with_ties(points.tolist(), 0.0) == pareto_mask(points, ACCURACY_LATENCY).tolist()
    assert pareto_mask_with_ties(np.empty((0, 2)), ACCURACY_LATENCY, measured=1, low=[], high=[]).shape == (0,)


def test_the_front_with_ties_dominates_all_else() -> None:
    """Nothing on it dominates another point of it, and whatever is off it is dominated by one of it."""
    random = np.random.default_rng(1)
    points = random.integers(0, 10, size=(60, 3)).astype(float)
    half = random.uniform(0, 1.5, size=60)
    directions: tuple[Direction, ...] = ("maximize", "minimize", "minimize")
    low, high = points[:, 1] - half, points[:, 1] + half
    mask = pareto_mask_with_ties(points, directions, measured=1, low=low, high=high)

    def dominates(one: int, other: int) -> bool:
        accuracy, size = points[one, 0] - points[other, 0], points[other, 2] - points[one, 2]
        faster, slower = high[one] < low[other], low[one] > high[other]
        return bool(accuracy >= 0 and size >= 0 and not slower and (accuracy > 0 or size > 0 or faster))

    front = np.flatnonzero(mask)
    assert 0 < len(front) < 60
    for point in range(60):
        assert any(dominates(other, point) for other in front) != mask[point]
