"""Unit clusters: equal to the published code's, true to their definition, by hand and on the edge cases."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from repository import FIXTURES

from lsmha.analysis.clusters import binarize_fields, find_clusters, greedy_clusters

FIELDS = np.load(FIXTURES / "field_clusters.npz")
PUBLISHED = json.loads((FIXTURES / "field_clusters.json").read_text(encoding="utf-8"))

# Few distinct values, so that clusters of several labels, ties with the threshold and empty heads all occur.
SMALL_FIELDS = st.tuples(st.integers(1, 3), st.integers(1, 7)).flatmap(
    lambda shape: hnp.arrays(np.float32, (shape[0], shape[1], shape[1]), elements=st.sampled_from([-2, 0, 3, 4, 10]))
)


@pytest.mark.parametrize("name", ["k10", "k100", "edges"])
def test_clusters_are_those_of_the_published_code(name: str) -> None:
    expected = [head["clusters"] for head in PUBLISHED[name]]
    assert find_clusters(FIELDS[name]) == expected
    assert find_clusters(torch.from_numpy(FIELDS[name])) == expected
    ones = binarize_fields(FIELDS[name])
    assert ones.dtype == bool
    assert ones.sum(axis=(1, 2)).tolist() == [head["ones"] for head in PUBLISHED[name]]


def _is_full(ones: np.ndarray, labels: list[int]) -> bool:
    return bool(ones[np.ix_(labels, labels)].all())


@settings(deadline=None)
@given(fields=SMALL_FIELDS)
def test_clusters_keep_to_their_definition(fields: np.ndarray) -> None:
    found = find_clusters(fields)
    assert len(found) == len(fields)
    for matrix, clusters in zip(fields, found, strict=True):
        peak = matrix.max()
        ones = matrix / peak > np.float32(0.3) if peak > 0 else np.zeros(matrix.shape, dtype=bool)
        left = np.flatnonzero(np.diag(ones)).tolist()
        # Disjoint, and each recognized label in exactly one.
        assert sorted(label for cluster in clusters for label in cluster) == left
        for cluster in clusters:
            assert all(type(label) is int for label in cluster)
            assert cluster[0] == left[0], "a cluster opens with the first candidate left"
            assert cluster == sorted(cluster)
            assert _is_full(ones, cluster)
            # Greedy: what it passed over would have broken the cluster as it was at that point.
            for label in set(left) - set(cluster):
                assert not _is_full(ones, [*(member for member in cluster if member < label), label])
            left = [label for label in left if label not in cluster]


@settings(deadline=None)
@given(fields=SMALL_FIELDS, exponents=st.lists(st.integers(-60, 60), min_size=3, max_size=3))
def test_scale_of_a_head_does_not_matter(fields: np.ndarray, exponents: list[int]) -> None:
    # Powers of two, which scale floats without rounding.
    scales = np.float32(2) ** np.array(exponents[: len(fields)], dtype=np.float32)
    assert find_clusters(fields * scales[:, None, None]) == find_clusters(fields)


def test_rows_are_inputs_and_columns_outputs() -> None:
    fields = np.zeros((1, 3, 3))
    fields[0, 0, 2] = 2.0
    fields[0, 1, 1] = 1.0
    assert np.argwhere(binarize_fields(fields)[0]).tolist() == [[0, 2], [1, 1]]


def test_greedy_order_by_hand() -> None:
    # 0-1, 0-2, 0-3 and 2-3 fit, 1 fits neither 2 nor 3. Label 1 comes first, which keeps {0, 2, 3} from forming.
    ones = np.eye(5, dtype=bool)
    for first, second in [(0, 1), (0, 2), (0, 3), (2, 3)]:
        ones[first, second] = ones[second, first] = True
    ones[4, 0] = True  # one way only
    assert greedy_clusters(ones) == [[0, 1], [2, 3], [4]]
    ones[1, 1] = False  # without its diagonal element, label 1 is no candidate
    assert greedy_clusters(ones) == [[0, 2, 3], [4]]


def test_each_head_has_its_own_maximum() -> None:
    fields = np.stack([np.eye(2), 0.01 * np.eye(2)])
    assert find_clusters(fields) == [[[0], [1]], [[0], [1]]]


def test_maximum_may_be_off_the_diagonal() -> None:
    assert find_clusters([[[1.0, 10.0], [0.0, 4.0]]]) == [[[1]]]


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_no_positive_field_recognizes_nothing(value: float) -> None:
    fields = np.full((2, 4, 4), value)
    assert not binarize_fields(fields, threshold=0.0).any()
    assert find_clusters(fields) == [[], []]


def test_zero_among_negative_fields_recognizes_nothing() -> None:
    assert find_clusters([[[0.0, -1.0], [-1.0, -1.0]]]) == [[]]


@pytest.mark.parametrize(("threshold", "expected"), [(0.25, [[0]]), (0.24, [[0], [1]]), (0.0, [[0], [1]])])
def test_threshold_is_strict(threshold: float, expected: list[list[int]]) -> None:
    assert find_clusters([[[1.0, 0.0], [0.0, 0.25]]], threshold) == [expected]


def test_threshold_is_compared_in_float32() -> None:
    # As float64, the float32 nearest to 0.3 is larger than 0.3.
    fields = np.diag(np.array([1.0, 0.3], dtype=np.float32))[None]
    assert float(fields[0, 1, 1]) > 0.3
    assert find_clusters(fields) == [[[0]]]
    above = np.nextafter(fields[0, 1, 1], np.float32(1))
    assert find_clusters(np.diag(np.array([1.0, above], dtype=np.float32))[None]) == [[[0], [1]]]


def test_extreme_fields() -> None:
    tiny, huge = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
    fields = np.array([[[tiny, -huge], [-huge, tiny]], [[huge, huge], [0.0, huge / 2]]], dtype=np.float32)
    assert find_clusters(fields) == [[[0], [1]], [[0], [1]]]


def test_one_label() -> None:
    assert find_clusters([[[0.5]], [[-0.5]]]) == [[[0]], []]


def test_arguments_are_left_alone() -> None:
    fields = FIELDS["k10"].copy()
    find_clusters(fields)
    np.testing.assert_array_equal(fields, FIELDS["k10"])
    ones = binarize_fields(fields)[1]
    before = ones.copy()
    greedy_clusters(ones)
    np.testing.assert_array_equal(ones, before)


@pytest.mark.parametrize("shape", [(3,), (3, 3), (2, 3, 4), (1, 2, 3, 3), (0, 3, 3), (2, 0, 0)])
def test_bad_shape_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^fields must have shape \(heads, labels, labels\), .* but got \([\d, ]+\)$"):
        find_clusters(np.ones(shape))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_non_finite_fields_are_named(bad: float) -> None:
    fields = np.ones((3, 2, 2))
    fields[1, 0, 1] = bad
    with pytest.raises(ValueError, match=r"^fields must be finite in float32, but 1 are not, first in matrix 1$"):
        find_clusters(fields)


@pytest.mark.parametrize("threshold", [-0.1, 1.0, 30.0, np.nan])
def test_bad_threshold_is_named(threshold: float) -> None:
    with pytest.raises(ValueError, match=r"^threshold must be at least 0 and below 1, but got "):
        find_clusters(np.ones((1, 2, 2)), threshold)
