"""Stratified selections: sizes, proportions, determinism."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lsmha.data import stratified_split, stratified_subset

label_lists = st.lists(st.integers(0, 6), min_size=2, max_size=200).map(torch.tensor)
seeds = st.integers(0, 2**32)


@settings(deadline=None)
@given(label_lists, st.floats(0.01, 0.99), seeds)
def test_split_is_disjoint_stratified_and_repeatable(labels, fraction, seed):
    counts = labels.bincount()
    size = round(fraction * len(labels))
    if not 1 <= size <= (counts - 1).clamp(min=0).sum():
        with pytest.raises(ValueError, match="every label keeps an image"):
            stratified_split(labels, fraction, seed)
        return
    rest, part = stratified_split(labels, fraction, seed)
    assert torch.equal(torch.cat([rest, part]).sort().values, torch.arange(len(labels)))
    assert len(part) == size
    assert set(labels[rest].tolist()) == set(labels.tolist())
    taken = labels[part].bincount(minlength=len(counts))
    ideal = counts * size / len(labels)
    # Labels whose last image stays in training push their shortfall onto others; without them, rounding only.
    if (ideal <= counts - 1).all():
        assert ((taken - ideal).abs() < 1).all()
    again = stratified_split(labels, fraction, seed)
    assert torch.equal(again[0], rest)
    assert torch.equal(again[1], part)


@settings(deadline=None)
@given(label_lists, st.data(), seeds)
def test_subset_has_its_size_and_every_label(labels, data, seed):
    present = len(labels.unique())
    size = data.draw(st.integers(present, len(labels)))
    chosen = stratified_subset(labels, size, seed)
    assert len(chosen.unique()) == size
    assert len(labels[chosen].unique()) == present
    assert torch.equal(chosen, stratified_subset(labels, size, seed))


def test_other_seeds_give_other_splits():
    labels = torch.arange(1000) % 10
    assert not torch.equal(stratified_split(labels, 0.1, 0)[1], stratified_split(labels, 0.1, 1)[1])


def test_balanced_labels_are_split_evenly():
    labels = torch.arange(1000) % 10
    assert labels[stratified_split(labels, 0.1, 0)[1]].bincount().tolist() == [10] * 10
    assert labels[stratified_subset(labels, 50, 0)].bincount().tolist() == [5] * 10


@pytest.mark.parametrize("size", [2, 7])
def test_impossible_subset_is_refused(size):
    with pytest.raises(ValueError, match="cannot be chosen"):
        stratified_subset(torch.tensor([0, 0, 1, 1, 2, 2]), size, 0)
