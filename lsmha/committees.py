"""Soft committees: several trained networks that decide together, from their stored logits, without retraining.

Shapes: M members, n images, K labels; logits are (M, n, K) and labels (n,), on the CPU. The paper (arXiv:2506.23832)
claims that a soft committee of networks with different head counts beats its members, but not how it is formed: the
three rules here are the usual ones.

Intervals are bootstrapped over images: they tell how far a gain would move with another test set of the same size.
How far it moves when the members are trained again from other seeds is not in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from lsmha.config import Rule
from lsmha.shapes import Float, Float32, Float64, Int, Shaped

RULES: tuple[Rule, ...] = get_args(Rule)

# Scores are summed in float64, as multiples of this step. Such sums are exact, so that neither the order of the members
# nor the way a subset is built up can turn a tie: with 12 members for sums of logits up to 2**17, by majority for up to
# a thousand members.
_STEP = 2.0**-32
# Scores held at once: 2 MiB of float64 stay in a core's cache, and larger tables are no faster. So all subsets of 12
# members on 10,000 images of 100 labels take 20 s on one core.
_CHUNK_SCORES = 2**18
# Draws of the bootstrap held at once, 32 MiB of int64.
_CHUNK_DRAWS = 2**22


class SubsetAccuracy(NamedTuple):
    """Indices of the members of one committee, ascending, and the fraction of images that it gets right."""

    members: tuple[int, ...]
    accuracy: float


class Interval(NamedTuple):
    """A mean, and the bounds of its confidence interval at `level` (0.95 for 95 %)."""

    mean: float
    low: float
    high: float
    level: float


@dataclass(frozen=True)
class CommitteeResult:
    """What a committee gains over its members on one set of images. Accuracies and gains are fractions of 1.

    `best_member` is the best one **on these very images**, the lower index of equals: known only by hindsight, and so
    the hardest reference, which no choice on validation images can beat. The interval of `gain_over_best` keeps that
    member in every resample. `gain_over_mean` is against the mean accuracy of the members. `mean_disagreement` is the
    mean over pairs of members of `disagreement`, None for a single member.
    """

    size: int
    accuracy: float
    member_accuracies: tuple[float, ...]
    best_member: int
    mean_member_accuracy: float
    gain_over_best: Interval
    gain_over_mean: Interval
    mean_disagreement: float | None


def member_scores(logits: Tensor, rule: Rule = "softmax") -> Float32[Tensor, "M n K"]:
    """What a committee sums over its members, (M, n, K) float32: softmax outputs, logits, or one vote per image.

    A sum of votes alone leaves ties. `committee_predictions`, and all that follows from it, breaks them by a second
    key: a tie of votes goes to the label with the largest summed softmax among the tied ones, never to one with fewer
    votes; a tie of summed softmax or logits goes to the most votes; what is tied in both goes to the lowest label.
    Sums less than about 2**-32 apart may count as tied.

    Raises:
        ValueError: `logits` are not (M, n, K) with at least one of each, or not finite; or `rule` is none of `RULES`.
    """
    return _scores(_checked_logits(logits), rule).float()


def committee_predictions(logits: Tensor, rule: Rule = "softmax") -> Int[Tensor, " n"]:
    """Labels (n,), int64, with the largest sum of `member_scores`; ties as documented there.

    The order of the members makes no difference. A single member predicts the label of its largest logit, by any rule.

    Raises:
        ValueError: As for `member_scores`.
    """
    checked = _checked_logits(logits)
    return torch.cat([keys.sum(0).argmax(1) for _, keys in _keys(checked, rule, tables=len(checked))])


def subset_accuracies(
    logits: Tensor, labels: Tensor, rule: Rule = "softmax", *, max_members: int = 12
) -> list[SubsetAccuracy]:
    """Accuracy of every committee of one or more of the members: small ones first, then in order of their indices.

    Every further member doubles time and memory; 12 are 4,095 committees.

    Raises:
        ValueError: As for `member_scores`; there are more than `max_members` members; or `labels` are not n integers
            from 0 to K-1.
    """
    checked = _checked_logits(logits)
    targets = _checked_labels(checked, labels)
    num_members, num_images, _ = checked.shape
    if num_members > max_members:
        raise ValueError(f"all subsets of at most {max_members} members can be scored, but got {num_members} members")
    num_subsets = 2**num_members
    hits = torch.zeros(num_subsets, dtype=torch.int64)
    for images, keys in _keys(checked, rule, tables=num_subsets):
        # Row s sums the members whose bits are set in s: rows with a member follow from those without it.
        sums = keys.new_zeros(num_subsets, *keys.shape[1:])
        for member, scores in enumerate(keys):
            torch.add(sums[: 1 << member], scores, out=sums[1 << member : 2 << member])
        hits += (sums.argmax(2) == targets[images]).sum(1)
    return [
        SubsetAccuracy(members, hits[sum(1 << member for member in members)].item() / num_images)
        for size in range(1, num_members + 1)
        for members in combinations(range(num_members), size)
    ]


def greedy_selection(logits: Tensor, labels: Tensor, rule: Rule = "softmax") -> tuple[int, ...]:
    """All members in the order of forward selection: each time the one that makes the most accurate committee.

    Of equals the lower index comes first. The order goes on through all members, also where accuracy falls: its first
    m are the committee of size m.

    Give it **validation** logits and labels. Members chosen by their test accuracy are selected on the test set,
    and the accuracy of their committee there says nothing about new images.

    Raises:
        ValueError: As for `member_scores`, or `labels` are not n integers from 0 to K-1.
    """
    checked = _checked_logits(logits)
    targets = _checked_labels(checked, labels)
    chosen: list[int] = []
    left = list(range(len(checked)))
    while left:
        hits = torch.zeros(len(left), dtype=torch.int64)
        for images, keys in _keys(checked, rule, tables=len(checked)):
            hits += ((keys[chosen].sum(0) + keys[left]).argmax(2) == targets[images]).sum(1)
        chosen.append(left.pop(int(hits.argmax())))
    return tuple(chosen)


def paired_bootstrap(difference: Tensor, *, resamples: int = 2000, level: float = 0.95, seed: int = 0) -> Interval:
    """Mean of per-image differences, with its percentile-bootstrap interval over images (Efron, 1979).

    Args:
        difference: (n,) correctness of one predictor minus another's on the same image, from -1 to 1; fractional
            where one of them is the mean of several.
        resamples: How often n images are drawn with replacement.
        level: Confidence level, between 0 and 1.
        seed: Of the draws; the same one gives the same interval.

    Raises:
        ValueError: `difference` is not one or more finite numbers, `resamples` is less than 1, or `level` is not
            between 0 and 1.
    """
    if difference.ndim != 1 or not len(difference) or not difference.isfinite().all():
        raise ValueError(
            f"difference must be one finite number per image, but got {_what(difference)} of shape "
            f"{tuple(difference.shape)}"
        )
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, but got {resamples}")
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, but got {level}")
    # Images of equal difference are interchangeable: how often each value is drawn is all that a resample needs. There
    # are 3 values for two predictors, and about 2M for one against the mean of M, whatever the number of images.
    values, counts = np.unique(difference.double().numpy(), return_counts=True)
    num_images = len(difference)
    rng = np.random.default_rng(seed)
    at_once = max(1, _CHUNK_DRAWS // len(values))
    means = np.concatenate(
        [
            rng.multinomial(num_images, counts / num_images, size=min(at_once, resamples - start)) @ values / num_images
            for start in range(0, resamples, at_once)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(counts @ values / num_images), float(low), float(high), level)


def disagreement(predictions: Tensor) -> Float64[Tensor, "M M"]:
    """Fraction of images (M, M), float64, on which two members predict different labels; predictions are (M, n).

    Raises:
        ValueError: `predictions` are not (M, n) with at least one of each.
    """
    if predictions.ndim != 2 or not predictions.numel():
        raise ValueError(
            f"predictions must have shape (members, images), none of them 0, but got {tuple(predictions.shape)}"
        )
    return torch.stack([(predictions != member).double().mean(1) for member in predictions])


def evaluate_committee(
    logits: Tensor, labels: Tensor, *, rule: Rule = "softmax", seed: int = 0, resamples: int = 2000
) -> CommitteeResult:
    """Accuracy of the committee of all members, and its gains with 95 % intervals; `seed` and `resamples` are theirs.

    Raises:
        ValueError: As for `member_scores` and `paired_bootstrap`, or `labels` are not n integers from 0 to K-1.
    """
    checked = _checked_logits(logits)
    targets = _checked_labels(checked, labels)
    predictions = checked.argmax(2)
    correct = (predictions == targets).double()
    committee = (committee_predictions(checked, rule) == targets).double()
    # Counts and one division: equal members have a mean of exactly 0 or 1 on each image, and so a gain of exactly 0.
    mean_member = correct.sum(0) / len(correct)
    accuracies = correct.mean(1)
    best = int(accuracies.argmax())
    pairs = torch.triu_indices(len(checked), len(checked), offset=1)
    return CommitteeResult(
        size=len(checked),
        accuracy=committee.mean().item(),
        member_accuracies=tuple(accuracies.tolist()),
        best_member=best,
        mean_member_accuracy=mean_member.mean().item(),
        gain_over_best=paired_bootstrap(committee - correct[best], resamples=resamples, seed=seed),
        gain_over_mean=paired_bootstrap(committee - mean_member, resamples=resamples, seed=seed),
        mean_disagreement=disagreement(predictions)[pairs[0], pairs[1]].mean().item() if len(checked) > 1 else None,
    )


def gain_between(
    first_logits: Tensor,
    second_logits: Tensor,
    labels: Tensor,
    rule: Rule = "softmax",
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Accuracy of a first committee minus that of a second on the same images: mixed against equal architectures, say.

    The committees may have different sizes, but a larger one has an advantage of its own.

    Raises:
        ValueError: As for `member_scores` and `paired_bootstrap`, or `labels` are not n integers from 0 to K-1.
    """
    first, second = (
        (committee_predictions(logits, rule) == _checked_labels(logits, labels)).double()
        for logits in (first_logits, second_logits)
    )
    return paired_bootstrap(first - second, resamples=resamples, level=level, seed=seed)


def check_members(
    names: Sequence[str], fingerprints: Sequence[str], labels: Sequence[Tensor], logits: Sequence[Tensor]
) -> None:
    """Refuse what cannot be a committee; afterwards `torch.stack(logits)` and any of the `labels` can be used.

    Args:
        names: M names to call the members by in an error.
        fingerprints: M fingerprints of the test sets.
        labels: M times (n,).
        logits: M times (n, K).

    Raises:
        ValueError: There is no member; one has a fingerprint, a shape of logits or labels other than the first one's;
            or its logits are not finite. One line that names the members.
    """
    if not names:
        raise ValueError("a committee needs at least one member, but got none")
    members = list(zip(names, fingerprints, labels, logits, strict=True))
    name, fingerprint, targets, scores = members[0]
    for other, other_fingerprint, other_targets, other_scores in members[1:]:
        if other_fingerprint != fingerprint:
            raise ValueError(
                f"members {name} and {other} are of different test sets: fingerprints {fingerprint!r} and "
                f"{other_fingerprint!r}"
            )
        if other_scores.shape != scores.shape:
            raise ValueError(
                f"members {name} and {other} have logits of different shapes: {tuple(scores.shape)} and "
                f"{tuple(other_scores.shape)}"
            )
        if not torch.equal(other_targets, targets):
            raise ValueError(f"members {name} and {other} are of different test sets: their labels differ")
    for name, _, _, scores in members:
        if not scores.isfinite().all():
            raise ValueError(f"logits of member {name} must be finite, but got {_what(scores)}")


def _keys(
    logits: Float[Tensor, "M n K"], rule: Rule, *, tables: int
) -> Iterator[tuple[slice, Float64[Tensor, "M c K"]]]:
    """A few images at a time, and their scores (M, c, K) whose sums rank the labels; float64, and summed exactly.

    One number holds both keys of `member_scores`: the second one is scaled to add up to less than a step of the first.
    `tables` is how many tables (c, K) the caller makes of them, which sets the number c of images.
    """
    num_members, num_images, num_labels = logits.shape
    # More than all votes together, and than the sum of the softmax outputs.
    above = 2.0 ** num_members.bit_length()
    at_once = max(1, _CHUNK_SCORES // (tables * num_labels))
    for start in range(0, num_images, at_once):
        images = slice(start, start + at_once)
        chunk = logits[:, images]
        votes = _scores(chunk, "majority")
        if rule == "majority":
            yield images, votes * above + _rounded(_scores(chunk, "softmax"))
        else:
            yield images, _rounded(_scores(chunk, rule)) + votes * (_STEP / above)


def _rounded(scores: Float64[Tensor, "M c K"]) -> Float64[Tensor, "M c K"]:
    return (scores / _STEP).round() * _STEP


def _scores(logits: Float[Tensor, "M n K"], rule: Rule) -> Float64[Tensor, "M n K"]:
    """Scores in float64: float32 softmax outputs differ in the last digit when labels change places."""
    if rule == "softmax":
        return logits.softmax(2, dtype=torch.float64)
    if rule == "logits":
        return logits.double()
    if rule == "majority":
        votes = torch.zeros_like(logits, dtype=torch.float64)
        return votes.scatter_(2, logits.argmax(2, keepdim=True), 1.0)
    raise ValueError(f"rule must be one of {RULES}, but got {rule!r}")


def _checked_logits(logits: Tensor) -> Float32[Tensor, "M n K"]:
    """Float32 logits."""
    if logits.ndim != 3 or not logits.numel():
        raise ValueError(
            f"logits must have shape (members, images, labels), none of them 0, but got {tuple(logits.shape)}"
        )
    checked = logits.float()
    for index, member in enumerate(checked):
        if not member.isfinite().all():
            raise ValueError(f"logits must be finite, but got {_what(member)} in member {index}")
    return checked


def _checked_labels(logits: Shaped[Tensor, "M n K"], labels: Tensor) -> Int[Tensor, " n"]:
    _, num_images, num_labels = logits.shape
    if labels.shape != (num_images,) or labels.is_floating_point() or not ((labels >= 0) & (labels < num_labels)).all():
        raise ValueError(
            f"labels must be {num_images} integers from 0 to {num_labels - 1}, but got {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )
    return labels


def _what(values: Tensor) -> str:
    """What kinds of numbers are among the values, for an error."""
    if values.isnan().any():
        return "NaN"
    return "infinity" if values.isinf().any() else "numbers"
