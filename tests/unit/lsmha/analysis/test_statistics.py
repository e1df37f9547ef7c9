"""Noise, means and signal-to-noise ratios: against the published code, a second way of counting, and by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from repository import FIXTURES

from lsmha.analysis.clusters import binarize_fields, find_clusters
from lsmha.analysis.statistics import ClusterMeans, FieldStatistics, field_statistics

FIELDS = np.load(FIXTURES / "field_clusters.npz")
PUBLISHED = json.loads((FIXTURES / "field_clusters.json").read_text(encoding="utf-8"))

# Two heads of four labels, right above 0.3 where it matters. Head 0: the cluster {0, 1}, and label 3 alone; noise at
# (2, 1) and (0, 3), in columns of cluster labels, and at (0, 2), in one of none. Head 1: no cluster, one noise element.
BY_HAND = np.zeros((2, 4, 4))
BY_HAND[0, [0, 0, 1, 1, 3], [0, 1, 0, 1, 3]] = 1.0
BY_HAND[0, [2, 0, 0], [1, 3, 2]] = 0.5
BY_HAND[1, 3, 0] = 2.0

SMALL_FIELDS = st.tuples(st.integers(1, 3), st.integers(2, 6)).flatmap(
    lambda shape: hnp.arrays(np.float32, (shape[0], shape[1], shape[1]), elements=st.sampled_from([-2, 0, 3, 4, 10]))
)


def _snr(matrix: np.ndarray) -> float:
    """Mean right over root mean square wrong output, one element at a time."""
    pairs = [(i, j) for i in range(len(matrix)) for j in range(len(matrix)) if i != j]
    noise = math.sqrt(sum(float(matrix[pair]) ** 2 for pair in pairs) / len(pairs))
    return sum(float(matrix[i, i]) for i in range(len(matrix))) / len(matrix) / noise


@pytest.mark.parametrize("name", ["k10", "k100", "edges"])
def test_noise_is_that_of_the_published_code(name: str) -> None:
    found = field_statistics(FIELDS[name])
    for quantity in ("noise", "column_noise", "ones"):
        values = getattr(found, quantity)
        assert values.dtype == np.int64
        assert values.tolist() == [head[quantity] for head in PUBLISHED[name]], quantity
    assert found.clusters == [head["clusters"] for head in PUBLISHED[name]]
    assert found.num_clusters.tolist() == [len(head["clusters"]) for head in PUBLISHED[name]]
    assert found.labels_per_head.tolist() == [sum(map(len, head["clusters"])) for head in PUBLISHED[name]]
    assert found.empty.tolist() == [not head["clusters"] for head in PUBLISHED[name]]


@pytest.mark.parametrize("name", ["k10", "k100"])
def test_measured_snr_is_that_of_a_plain_loop(name: str) -> None:
    fields = FIELDS[name].astype(np.float64)
    found = field_statistics(fields)
    expected = [_snr(matrix) for matrix in fields]
    np.testing.assert_allclose(found.head_snr, expected, rtol=1e-12)
    assert found.mean_head_snr == pytest.approx(sum(expected) / len(expected))
    assert found.field_snr == pytest.approx(_snr(fields.sum(axis=0)))


@pytest.mark.parametrize("name", ["k10", "k100", "edges"])
def test_cluster_snr_is_that_of_the_summed_binary_fields(name: str) -> None:
    total = binarize_fields(FIELDS[name]).sum(axis=0)
    wrong = total[~np.eye(len(total), dtype=bool)]
    assert field_statistics(FIELDS[name]).cluster_snr == pytest.approx(np.diag(total).mean() / wrong.mean())


@settings(deadline=None)
@given(fields=SMALL_FIELDS)
def test_noise_is_what_lies_outside_the_clusters(fields: np.ndarray) -> None:
    found = field_statistics(fields)
    assert found.clusters == find_clusters(fields)
    for head, ones in enumerate(binarize_fields(fields)):
        outside = ones.copy()
        for cluster in found.clusters[head]:
            outside[np.ix_(cluster, cluster)] = False
        columns = [label for cluster in found.clusters[head] for label in cluster]
        assert found.ones[head] == ones.sum()
        assert found.noise[head] == outside.sum() == ones.sum() - sum(len(c) ** 2 for c in found.clusters[head])
        assert found.column_noise[head] == outside[:, columns].sum()
    assert sum(found.cluster_sizes.values()) == found.num_clusters.sum()
    assert sum(size * count for size, count in found.cluster_sizes.items()) == found.labels_per_head.sum()


@settings(deadline=None)
@given(fields=SMALL_FIELDS, exponent=st.integers(-40, 40))
def test_scale_of_the_block_does_not_matter(fields: np.ndarray, exponent: int) -> None:
    scaled, plain = field_statistics(fields * np.float32(2) ** np.float32(exponent)), field_statistics(fields)
    assert scaled.clusters == plain.clusters
    np.testing.assert_allclose(scaled.head_snr, plain.head_snr, rtol=1e-12)
    for name in ("cluster_snr", "cluster_snr_nonempty", "field_snr", "mean_head_snr"):
        assert getattr(scaled, name) == pytest.approx(getattr(plain, name), nan_ok=True), name


def test_block_by_hand() -> None:
    found = field_statistics(BY_HAND)
    assert found.clusters == [[[0, 1], [3]], []]
    assert found.ones.tolist() == [8, 1]
    assert found.noise.tolist() == [3, 1]
    assert found.column_noise.tolist() == [2, 0]
    assert found.empty.tolist() == [False, True]
    assert found.cluster_sizes == {1: 1, 2: 1}
    assert found.means == ClusterMeans(
        clusters_per_head=1.0, cluster_size=1.5, labels_per_head=1.5, noise=2.0, column_noise=1.0
    )
    assert found.means_nonempty == ClusterMeans(
        clusters_per_head=2.0, cluster_size=1.5, labels_per_head=3.0, noise=3.0, column_noise=2.0
    )
    # Three labels in clusters; 2 * 1 elements within clusters and 3 + 1 outside them on wrong outputs.
    assert found.cluster_snr == pytest.approx(3 * 3 / (2 + 4))
    assert found.cluster_snr_nonempty == pytest.approx(3 * 3 / (2 + 3))
    # Off the diagonal: 1, 1 and three 0.5 in head 0; 2 in head 1.
    assert found.head_snr.tolist() == pytest.approx([0.75 / math.sqrt(2.75 / 12), 0.0])
    assert found.mean_head_snr == pytest.approx(0.375 / math.sqrt(2.75 / 12))
    assert found.field_snr == pytest.approx(0.75 / math.sqrt((2.75 + 4) / 12))


def test_heads_may_cancel_each_others_noise() -> None:
    noise = np.array([[0.0, 1.0], [-1.0, 0.0]])
    found = field_statistics(np.stack([np.eye(2) + noise, np.eye(2) - noise]))
    assert found.head_snr.tolist() == [1.0, 1.0]
    assert found.field_snr == math.inf


def test_equal_heads_have_the_snr_of_the_formula() -> None:
    # N heads of N_c clusters of C_s labels, no noise: N_c C_s (K - 1) / (N_c C_s (C_s - 1)).
    fields = np.kron(np.eye(3), np.ones((4, 4)))[None].repeat(5, axis=0)
    found = field_statistics(fields)
    assert found.cluster_sizes == {4: 15}
    assert found.cluster_snr == pytest.approx(3 * 4 * 11 / (3 * 4 * 3))


def test_signal_without_noise_is_infinite() -> None:
    found = field_statistics(np.eye(3)[None])
    assert (found.cluster_snr, found.field_snr, found.mean_head_snr) == (math.inf, math.inf, math.inf)
    assert found.head_snr.tolist() == [math.inf]


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_no_head_recognizes_anything(value: float) -> None:
    found = field_statistics(np.full((2, 3, 3), value))
    assert found.empty.all()
    assert found.cluster_sizes == {}
    assert (found.means.clusters_per_head, found.means.labels_per_head, found.means.noise) == (0.0, 0.0, 0.0)
    assert math.isnan(found.means.cluster_size)
    for name in ClusterMeans.__dataclass_fields__:
        assert math.isnan(getattr(found.means_nonempty, name)), name
    assert math.isnan(found.cluster_snr)
    assert math.isnan(found.cluster_snr_nonempty)
    # All-negative fields are as large on right as on wrong outputs, with the wrong sign; zeros have no ratio.
    expected = -1.0 if value else math.nan
    np.testing.assert_equal([*found.head_snr, found.field_snr, found.mean_head_snr], [expected] * 4)


def test_noise_without_a_cluster_is_counted() -> None:
    found = field_statistics(BY_HAND[1:])
    assert (found.noise.tolist(), found.column_noise.tolist()) == ([1], [0])
    assert math.isnan(found.cluster_snr)


def test_silent_heads_do_not_spoil_the_mean_snr() -> None:
    fields = np.stack([np.zeros((2, 2)), np.array([[2.0, 1.0], [1.0, 2.0]])])
    found = field_statistics(fields)
    np.testing.assert_equal(found.head_snr, [math.nan, 2.0])
    assert found.mean_head_snr == 2.0


def test_opposite_infinities_have_no_mean() -> None:
    found = field_statistics(np.stack([np.eye(2), -np.eye(2)]))
    assert found.head_snr.tolist() == [math.inf, -math.inf]
    assert math.isnan(found.mean_head_snr)


def test_one_label() -> None:
    found = field_statistics([[[0.5]]])
    assert found.clusters == [[[0]]]
    assert (found.cluster_snr, found.field_snr) == (math.inf, math.inf)


def test_extreme_fields_neither_overflow_nor_vanish() -> None:
    matrix = np.array([[2.0, 1.0], [1.0, 2.0]])
    for scale in (2.0**126, 2.0**-140):
        found = field_statistics(np.stack([matrix, matrix]) * scale)
        assert found.head_snr.tolist() == [2.0, 2.0]
        assert found.field_snr == 2.0


def test_tensors_are_taken_as_arrays() -> None:
    _assert_equal(field_statistics(torch.from_numpy(FIELDS["k10"])), field_statistics(FIELDS["k10"]))


def test_threshold_counts() -> None:
    assert field_statistics(BY_HAND, threshold=0.5).noise.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("fields", "threshold", "message"),
    [
        (np.ones((2, 3, 4)), 0.3, r"^fields must have shape"),
        (np.full((1, 2, 2), np.nan), 0.3, r"^fields must be finite"),
        (np.ones((1, 2, 2)), 1.0, r"^threshold must be"),
    ],
)
def test_bad_input_is_named(fields: np.ndarray, threshold: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        field_statistics(fields, threshold)


def _assert_equal(found: FieldStatistics, expected: FieldStatistics) -> None:
    for name in FieldStatistics.__dataclass_fields__:
        np.testing.assert_equal(getattr(found, name), getattr(expected, name), err_msg=name)
