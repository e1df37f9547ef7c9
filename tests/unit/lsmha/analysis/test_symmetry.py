"""Symmetry breaking: counts by hand, the null against every permutation and against its exact moments, the p-values."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from lsmha.analysis.symmetry import head_label_incidence, symmetry_breaking


def _overlap(incidence: np.ndarray) -> float:
    """Labels that two heads share, averaged over pairs of heads, by sets."""
    known = [set(np.flatnonzero(labels)) for labels in incidence]
    return float(np.mean([len(first & second) for first, second in itertools.combinations(known, 2)]))


def _jaccard(incidence: np.ndarray) -> float:
    known = [set(np.flatnonzero(labels)) for labels in incidence]
    pairs = [(a, b) for a, b in itertools.combinations(known, 2) if a | b]
    return float(np.mean([len(a & b) / len(a | b) for a, b in pairs]))


def test_incidence_is_the_binarized_diagonal() -> None:
    fields = np.array([[[1.0, 0.9], [0.9, 0.25]], [[-1.0, 5.0], [0.0, 2.0]], [[-1.0, -1.0], [-1.0, -1.0]]])
    expected = [[True, False], [False, True], [False, False]]
    assert head_label_incidence(fields).tolist() == expected
    assert head_label_incidence(torch.from_numpy(fields)).tolist() == expected
    assert head_label_incidence(fields, threshold=0.2)[0].tolist() == [True, True]
    with pytest.raises(ValueError, match=r"^fields must have shape"):
        head_label_incidence(fields[0])


def test_incidence_may_be_changed() -> None:
    incidence = head_label_incidence(np.ones((2, 3, 3)))
    incidence[0, 0] = False
    assert incidence.sum() == 5


def test_counts_by_hand() -> None:
    incidence = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [0, 0, 1, 0, 1], [0, 0, 0, 0, 0]], dtype=bool)
    found = symmetry_breaking(incidence, permutations=10)
    assert found.heads_per_label.tolist() == [2, 2, 2, 0, 1]
    assert found.labels_per_head.tolist() == [2, 3, 2, 0]
    assert found.unrecognized_labels == [3]
    # Heads 0 and 1 share two labels of three, 1 and 2 one of four, 0 and 2 none; three pairs hold the empty head.
    assert found.mean_overlap == pytest.approx((2 + 1) / 6)
    assert found.mean_jaccard == pytest.approx((2 / 3 + 1 / 4) / 6)


@pytest.mark.parametrize("density", [0.05, 0.3, 0.9])
def test_overlap_is_that_of_sets(density: float) -> None:
    incidence = np.random.default_rng(1).random((12, 9)) < density
    found = symmetry_breaking(incidence, permutations=1)
    assert found.mean_overlap == pytest.approx(_overlap(incidence))
    assert found.mean_jaccard == pytest.approx(_jaccard(incidence))


def test_null_is_that_of_every_permutation() -> None:
    incidence = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0]], dtype=bool)
    found = symmetry_breaking(incidence, permutations=20_000, seed=3)
    orders = list(itertools.permutations(range(4)))
    # The first head may stay as it is: only how the heads lie to each other counts.
    every = [
        _overlap(np.stack([incidence[0], incidence[1, list(second)], incidence[2, list(third)]]))
        for second, third in itertools.product(orders, repeat=2)
    ]
    observed = _overlap(incidence)
    assert found.null_mean_overlap == pytest.approx(np.mean(every), abs=0.01)
    assert found.null_std_overlap == pytest.approx(np.std(every), abs=0.01)
    # A hair of slack, as means of counts are compared.
    assert found.p_smaller == pytest.approx(np.mean([value <= observed + 1e-9 for value in every]), abs=0.01)
    assert found.p_larger == pytest.approx(np.mean([value >= observed - 1e-9 for value in every]), abs=0.01)


def test_null_has_the_exact_moments() -> None:
    # The labels that two heads share are hypergeometric, and uncorrelated even between pairs with a head in common.
    num_labels = 20
    incidence = np.random.default_rng(2).random((10, num_labels)) < np.linspace(0.1, 0.8, 10)[:, None]
    sizes = incidence.sum(axis=1)
    pairs = [(int(sizes[i]), int(sizes[j])) for i, j in itertools.combinations(range(10), 2)]
    mean = sum(a * b / num_labels for a, b in pairs) / len(pairs)
    variances = [a * b * (num_labels - a) * (num_labels - b) / num_labels**2 / (num_labels - 1) for a, b in pairs]
    found = symmetry_breaking(incidence, permutations=4000)
    std = math.sqrt(sum(variances)) / len(pairs)
    assert found.null_mean_overlap == pytest.approx(mean, abs=4 * std / math.sqrt(4000))
    assert found.null_std_overlap == pytest.approx(std, rel=0.05)


def test_heads_that_specialize_stand_out() -> None:
    disjoint = np.kron(np.eye(8, dtype=bool), np.ones((1, 5), dtype=bool))
    found = symmetry_breaking(disjoint)
    assert found.mean_overlap == 0.0
    assert found.mean_jaccard == 0.0
    assert found.p_smaller == pytest.approx(1 / 1001), "no permutation is as extreme, which is no proof of zero"
    assert found.p_larger == 1.0


def test_heads_that_agree_stand_out() -> None:
    same = np.tile(np.arange(40) < 5, (8, 1))
    found = symmetry_breaking(same)
    assert found.mean_overlap == 5.0
    assert found.mean_jaccard == 1.0
    assert found.p_larger == pytest.approx(1 / 1001)
    assert found.p_smaller == 1.0


def test_random_heads_do_not_stand_out() -> None:
    rng = np.random.default_rng(0)
    values = np.array(
        [
            (found.p_smaller, found.p_larger)
            for found in (symmetry_breaking(rng.random((16, 30)) < 0.2, permutations=100) for _ in range(200))
        ]
    )
    # Under the null, p-values are close to uniform, and never too small too often.
    assert (values <= 0.05).mean(axis=0) == pytest.approx([0.05, 0.05], abs=0.04)
    assert values.mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.08)
    # Both count the permutations that equal the observation, and the one added to n.
    assert (values.sum(axis=1) >= 1 + 1 / 101 - 1e-12).all()


@pytest.mark.parametrize("known", [False, True])
def test_heads_that_cannot_differ(known: bool) -> None:
    found = symmetry_breaking(np.full((3, 4), known), permutations=5)
    assert found.mean_overlap == found.null_mean_overlap == (4.0 if known else 0.0)
    assert found.null_std_overlap == 0.0
    assert (found.p_smaller, found.p_larger) == (1.0, 1.0)
    np.testing.assert_equal(found.mean_jaccard, 1.0 if known else math.nan)
    assert found.unrecognized_labels == ([] if known else [0, 1, 2, 3])


def test_one_head_has_no_overlap() -> None:
    found = symmetry_breaking(np.array([[True, False, True]]))
    assert found.heads_per_label.tolist() == [1, 0, 1]
    assert found.labels_per_head.tolist() == [2]
    assert found.unrecognized_labels == [1]
    pairwise = (found.mean_overlap, found.mean_jaccard, found.null_mean_overlap, found.null_std_overlap)
    assert all(map(math.isnan, (*pairwise, found.p_smaller, found.p_larger)))


def test_seed_decides() -> None:
    incidence = np.random.default_rng(5).random((6, 12)) < 0.4
    first, again, other = (symmetry_breaking(incidence, permutations=50, seed=seed) for seed in (1, 1, 2))
    assert first.null_mean_overlap == again.null_mean_overlap
    assert first.p_smaller == again.p_smaller
    assert first.null_mean_overlap != other.null_mean_overlap


def test_argument_is_left_alone() -> None:
    incidence = np.random.default_rng(5).random((6, 12)) < 0.4
    before = incidence.copy()
    symmetry_breaking(incidence, permutations=3)
    np.testing.assert_array_equal(incidence, before)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "incidence", [np.ones(3, dtype=bool), np.ones((2, 2)), np.ones((0, 3), dtype=bool), np.ones((1, 2, 2), dtype=bool)]
)
def test_bad_incidence_is_named(incidence: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"^incidence must be booleans of shape \(heads, labels\), .* but got \w+ of"):
        symmetry_breaking(incidence)


def test_bad_numbers_are_named() -> None:
    incidence = np.ones((2, 2), dtype=bool)
    with pytest.raises(ValueError, match=r"^permutations must be at least 1, but got 0$"):
        symmetry_breaking(incidence, permutations=0)
    with pytest.raises(ValueError, match=r"^seed must be at least 0, but got -1$"):
        symmetry_breaking(incidence, seed=-1)
