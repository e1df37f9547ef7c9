"""Stratified selections of labeled images.

scikit-learn's `StratifiedShuffleSplit` refuses a class with a single image and parts smaller than the number of
classes, both of which occur in long-tailed or small sets; here the former stays in training and the latter is allowed.
"""

from __future__ import annotations

import numpy as np
import torch


def stratified_split(labels: torch.Tensor, fraction: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Split images at random into a rest and a part with `fraction` of them, each label in proportion.

    Args:
        labels: (n,) integer labels, not negative.
        fraction: size of the part over n, in (0, 1); the part has round(fraction * n) images.
        seed: of the choice; the same seed gives the same split.

    Returns:
        Indices of the rest and of the part, (n - m,) and (m,) int64, each ascending and together 0..n-1. Every label
        that occurs keeps at least one image in the rest.

    Raises:
        ValueError: the part would be empty, or so large that some label had no image left in the rest.
    """
    counts = _label_counts(labels)
    size = round(fraction * len(labels))
    largest = int((counts - (counts > 0)).sum())
    if not 1 <= size <= largest:
        raise ValueError(
            f"a fraction of {fraction} of {len(labels)} images is {size}, but between 1 and {largest} can be split off "
            "such that every label keeps an image"
        )
    chosen = _choose(labels, _quotas(counts, size, np.zeros_like(counts), counts - (counts > 0)), seed)
    return torch.from_numpy(np.flatnonzero(~chosen)), torch.from_numpy(np.flatnonzero(chosen))


def stratified_subset(labels: torch.Tensor, size: int, seed: int) -> torch.Tensor:
    """Choose images at random, each label in proportion and at least once.

    Args:
        labels: (n,) integer labels, not negative.
        size: images to choose.
        seed: of the choice; the same seed gives the same subset.

    Returns:
        Indices (size,) int64, ascending.

    Raises:
        ValueError: `size` is above n or below the number of labels that occur.
    """
    counts = _label_counts(labels)
    smallest = int((counts > 0).sum())
    if not smallest <= size <= len(labels):
        raise ValueError(f"{size} images cannot be chosen from {len(labels)} images of {smallest} labels")
    chosen = _choose(labels, _quotas(counts, size, np.minimum(counts, 1), counts), seed)
    return torch.from_numpy(np.flatnonzero(chosen))


def _label_counts(labels: torch.Tensor) -> np.ndarray:
    return np.bincount(labels.numpy())


def _quotas(counts: np.ndarray, size: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Share `size` among the labels in proportion to `counts` by largest remainders, within low..high."""
    ideal = counts * size / counts.sum()
    quotas = np.clip(np.floor(ideal).astype(np.int64), low, high)
    while (missing := size - quotas.sum()) != 0:
        step = 1 if missing > 0 else -1
        remainder = np.where(quotas != (high if step > 0 else low), step * (ideal - quotas), -np.inf)
        quotas[np.argmax(remainder)] += step
    return quotas


def _choose(labels: torch.Tensor, quotas: np.ndarray, seed: int) -> np.ndarray:
    """Mask (n,) of the first `quotas[label]` images of each label in a random order."""
    order = np.random.default_rng(seed).permutation(len(labels))
    shuffled = labels.numpy()[order]
    chosen = np.zeros(len(labels), dtype=bool)
    for label, quota in enumerate(quotas):
        chosen[order[np.flatnonzero(shuffled == label)[:quota]]] = True
    return chosen
