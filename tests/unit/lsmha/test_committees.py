"""Committees by hand, against plain loops and SciPy, on ties, and on members that do not belong together."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch import Tensor

from lsmha import committees
from lsmha.committees import (
    RULES,
    Interval,
    Rule,
    SubsetAccuracy,
    check_members,
    committee_predictions,
    disagreement,
    evaluate_committee,
    gain_between,
    greedy_selection,
    member_scores,
    paired_bootstrap,
    subset_accuracies,
)

NOTHING = Interval(0.0, 0.0, 0.0, 0.95)


def _random_members(members: int, images: int = 60, num_labels: int = 5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and labels, with members right more often than chance and of different strength."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_labels, (images,), generator=generator)
    logits = torch.randn(members, images, num_labels, generator=generator)
    strength = torch.linspace(0.3, 1.5, members)[torch.randperm(members, generator=generator)]
    logits += strength[:, None, None] * torch.eye(num_labels)[labels]
    return logits, labels


def _plain_predictions(logits: Tensor, rule: Rule) -> list[int]:
    """One image and one member at a time, in Python's numbers."""
    num_labels = logits.shape[2]
    predicted = []
    for image in logits.double().numpy().transpose(1, 0, 2):
        fields = [sum(member[label] for member in image) for label in range(num_labels)]
        soft = [sum(special.softmax(member)[label] for member in image) for label in range(num_labels)]
        votes = [sum(int(np.argmax(member) == label) for member in image) for label in range(num_labels)]
        keys = {"softmax": soft, "logits": fields, "majority": list(zip(votes, soft, strict=True))}[rule]
        predicted.append(max(range(num_labels), key=lambda label: keys[label]))
    return predicted


def _plain_accuracy(logits: Tensor, labels: Tensor, rule: Rule) -> float:
    predicted = _plain_predictions(logits, rule)
    return sum(a == b for a, b in zip(predicted, labels.tolist(), strict=True)) / len(labels)


def test_scores_are_softmax_logits_or_one_vote() -> None:
    logits = torch.tensor([[[0.0, np.log(3.0)]], [[2.0, -1.0]]]).float()
    assert member_scores(logits)[0, 0].tolist() == pytest.approx([0.25, 0.75])
    torch.testing.assert_close(member_scores(logits, "logits"), logits)
    assert member_scores(logits, "majority").tolist() == [[[0.0, 1.0]], [[1.0, 0.0]]]
    for rule in RULES:
        assert member_scores(logits.double(), rule).dtype == torch.float32


def test_rules_can_differ() -> None:
    # One member is sure of label 0. Two prefer label 1, on the first image clearly, on the second by a hair.
    sure, clear, hair = [8.0, 0.0], [0.0, 3.0], [0.0, 0.1]
    logits = torch.tensor([[sure, sure], [clear, hair], [clear, hair]])
    assert committee_predictions(logits, "logits").tolist() == [0, 0]  # 8 against 6, and against 0.2
    assert committee_predictions(logits, "softmax").tolist() == [1, 0]  # 1.09 against 1.91, and 1.95 against 1.05
    assert committee_predictions(logits, "majority").tolist() == [1, 1]
    torch.testing.assert_close(committee_predictions(logits), committee_predictions(logits, "softmax"))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("members", [1, 2, 3, 6])
def test_predictions_equal_a_plain_loop(rule: Rule, members: int) -> None:
    logits, _ = _random_members(members)
    predictions = committee_predictions(logits, rule)
    assert predictions.dtype == torch.int64
    assert predictions.tolist() == _plain_predictions(logits, rule)


def test_ties_of_votes_go_to_the_larger_softmax_sum() -> None:
    # Two votes for label 2, two for label 0, and the more certain ones decide, either way.
    weak, strong = 1.0, 1.5
    for_0, for_2 = [weak, 0.0, 0.0], [0.0, 0.0, strong]
    tied = torch.tensor([[for_0], [for_2], [for_2], [for_0]])
    assert committee_predictions(tied, "majority").item() == 2
    assert committee_predictions(tied.flip(2), "majority").item() == 0
    # Label 2 is everyone's close second: the largest softmax sum, but no vote.
    second = torch.tensor([[[2.0, -3.0, 1.9]], [[-3.0, 2.1, 1.9]]])
    assert committee_predictions(second, "softmax").item() == 2
    assert committee_predictions(second, "majority").item() == 1


def test_tie_break_sees_small_leads_and_outvotes_nobody() -> None:
    # Six votes each, and a lead of 5e-7 in summed softmax: less than float32 resolves beside votes.
    logits = torch.tensor([[0.5, 0.0], [0.0, 0.5]] * 6)[:, None]
    logits[-1, 0, 1] += 2e-6
    assert committee_predictions(logits, "majority").item() == 1
    assert committee_predictions(logits.flip(2), "majority").item() == 0
    # Seven votes by a hair against six of full certainty.
    logits = torch.tensor([[0.0, 1e-3]] * 7 + [[50.0, 0.0]] * 6)[:, None]
    assert committee_predictions(logits, "majority").item() == 1


def test_full_ties_go_to_the_lowest_label() -> None:
    logits = torch.tensor([[[0.0, 1.0, 2.0]], [[0.0, 2.0, 1.0]]])
    for rule in RULES:
        assert committee_predictions(logits, rule).item() == 1
        assert committee_predictions(torch.zeros(3, 1, 4), rule).item() == 0


@pytest.mark.parametrize("rule", RULES)
def test_committee_of_one_is_the_member(rule: Rule) -> None:
    logits, labels = _random_members(1)
    # Logits too near for their softmax outputs to differ, or so far apart that one of these is 0.
    extreme = torch.tensor([[1e-9, 2e-9], [1e-30, 2e-30], [-200.0, 200.0], [-1e30, 1e30]])[None]
    assert committee_predictions(extreme, rule).tolist() == [1, 1, 1, 1]
    assert committee_predictions(logits, rule).tolist() == logits[0].argmax(1).tolist()
    result = evaluate_committee(logits, labels, rule=rule)
    assert (result.size, result.best_member, result.mean_disagreement) == (1, 0, None)
    assert result.member_accuracies == (result.accuracy,)
    assert result.gain_over_best == result.gain_over_mean == NOTHING


@pytest.mark.parametrize("rule", RULES)
def test_identical_members_gain_nothing(rule: Rule) -> None:
    logits, labels = _random_members(1)
    result = evaluate_committee(logits.expand(7, -1, -1), labels, rule=rule)
    assert result.gain_over_best == result.gain_over_mean == NOTHING
    assert result.mean_disagreement == 0.0
    assert result.best_member == 0
    assert gain_between(logits.expand(3, -1, -1), logits, labels, rule) == NOTHING


@settings(max_examples=60, deadline=None)
@given(data=st.data(), rule=st.sampled_from(RULES))
def test_order_of_members_makes_no_difference(data: st.DataObject, rule: Rule) -> None:
    members, images, num_labels = (data.draw(st.integers(1, high)) for high in (6, 3, 4))
    # Few distinct values, so that ties of sums occur, which rounding in another order would turn.
    numbers = st.sampled_from([-20.0, -1.1, 0.0, 0.1, 0.7, 1.1, 9.3])
    size = members * images * num_labels
    flat = data.draw(st.lists(numbers, min_size=size, max_size=size))
    logits = torch.tensor(flat).reshape(members, images, num_labels)
    labels = torch.tensor(data.draw(st.lists(st.integers(0, num_labels - 1), min_size=images, max_size=images)))
    order = data.draw(st.permutations(range(members)))
    assert committee_predictions(logits[order], rule).tolist() == committee_predictions(logits, rule).tolist()
    there = {row.members: row.accuracy for row in subset_accuracies(logits, labels, rule)}
    for row in subset_accuracies(logits[order], labels, rule):
        assert row.accuracy == there[tuple(sorted(order[member] for member in row.members))]


@pytest.mark.parametrize("rule", RULES)
def test_subsets_equal_a_plain_loop(rule: Rule) -> None:
    logits, labels = _random_members(4)
    rows = subset_accuracies(logits, labels, rule)
    expected = [members for size in range(1, 5) for members in itertools.combinations(range(4), size)]
    assert [row.members for row in rows] == expected
    for row in rows:
        assert row.accuracy == _plain_accuracy(logits[list(row.members)], labels, rule)
    assert rows[-1].accuracy == evaluate_committee(logits, labels, rule=rule).accuracy


@pytest.mark.parametrize("rule", RULES)
def test_subsets_of_tied_members_equal_their_committees(rule: Rule) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randint(3, (6, 50, 3), generator=generator).float() * 0.7
    labels = torch.randint(3, (50,), generator=generator)
    for row in subset_accuracies(logits, labels, rule):
        predictions = committee_predictions(logits[list(row.members)], rule)
        assert row.accuracy == (predictions == labels).sum().item() / 50


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = _random_members(5)
    functions: list[Callable[..., Any]] = [subset_accuracies, greedy_selection, evaluate_committee]
    whole = [function(logits, labels) for function in functions]
    fractional = torch.linspace(-1, 1, 50)
    interval = paired_bootstrap(fractional)
    monkeypatch.setattr(committees, "_CHUNK_SCORES", 2**5 * 5 * 7)
    monkeypatch.setattr(committees, "_CHUNK_DRAWS", 50 * 300)
    assert [function(logits, labels) for function in functions] == whole
    assert paired_bootstrap(fractional) == interval
    monkeypatch.setattr(committees, "_CHUNK_SCORES", 1)
    assert [function(logits, labels) for function in functions] == whole


def test_twelve_members_are_enough() -> None:
    logits, labels = _random_members(13, images=3)
    with pytest.raises(ValueError, match="at most 12 members can be scored, but got 13 members"):
        subset_accuracies(logits, labels)
    rows = subset_accuracies(logits[:12], labels)
    assert len(rows) == 4095
    assert rows[0] == SubsetAccuracy((0,), rows[0].accuracy)
    assert rows[-1].members == tuple(range(12))
    with pytest.raises(ValueError, match="at most 2 members"):
        subset_accuracies(logits[:3], labels, max_members=2)


@pytest.mark.parametrize("rule", RULES)
def test_greedy_order_equals_brute_force(rule: Rule) -> None:
    logits, labels = _random_members(5, images=200)
    order = greedy_selection(logits, labels, rule)
    assert sorted(order) == list(range(5))
    accuracy = {row.members: row.accuracy for row in subset_accuracies(logits, labels, rule)}
    for step in range(5):
        before = order[:step]
        options = {other: accuracy[tuple(sorted((*before, other)))] for other in range(5) if other not in before}
        assert order[step] == max(options, key=lambda other: options[other])


def test_greedy_takes_what_complements_and_the_lower_of_equals() -> None:
    # Each row: logits of the right label on four images, against 0.5. Member 3 errs most, but not where member 1 errs.
    right = torch.tensor([[0, 1.2, 1.2, 0], [1.2, 1.2, 1.2, 0], [1.2, 1.2, 1.2, 0], [0, 0, 0, 5]])
    logits = torch.stack([right, 0.5 * torch.ones(4, 4)], dim=2)
    labels = torch.zeros(4, dtype=torch.int64)
    assert greedy_selection(logits, labels, "logits") == (1, 3, 2, 0)
    assert greedy_selection(torch.zeros(4, 4, 2), labels) == (0, 1, 2, 3)


def test_result_by_hand() -> None:
    # Votes of three members for two labels; all labels are 0. The majority is right on all images but the last.
    votes = torch.tensor([[0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]])
    logits = torch.eye(2)[votes]
    labels = torch.zeros(4, dtype=torch.int64)
    result = evaluate_committee(logits, labels, rule="majority")
    assert result.size == 3
    assert result.accuracy == 0.75
    assert result.member_accuracies == (0.5, 0.5, 1.0)
    assert result.best_member == 2
    assert result.mean_member_accuracy == pytest.approx(2 / 3)
    assert result.gain_over_best.mean == -0.25
    assert result.gain_over_mean.mean == pytest.approx(0.75 - 2 / 3)
    assert result.gain_over_best.low < -0.25 < result.gain_over_best.high == 0.0
    # Pairs differ on 2, 2 and 2 of 4 images: (0, 1) on the middle ones, (0, 2) on the last two, (1, 2) on 1 and 3.
    assert result.mean_disagreement == pytest.approx(0.5)
    expected = [[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]
    assert disagreement(votes).tolist() == expected


def test_intervals_pair_the_images() -> None:
    logits, labels = _random_members(4, images=300)
    result = evaluate_committee(logits, labels, seed=3, resamples=500)
    committee = (committee_predictions(logits) == labels).double()
    members = (logits.argmax(2) == labels).double()
    best = members[members.mean(1).argmax()]
    assert result.gain_over_best == paired_bootstrap(committee - best, seed=3, resamples=500)
    expected = paired_bootstrap(committee - members.mean(0), seed=3, resamples=500)
    assert result.gain_over_mean == pytest.approx(expected)
    assert result.gain_over_best.mean == pytest.approx(result.accuracy - max(result.member_accuracies))
    assert result.gain_over_mean.mean == pytest.approx(result.accuracy - result.mean_member_accuracy)


def test_gain_between_committees() -> None:
    logits, labels = _random_members(6, images=300)
    first, second = logits[:4], logits[4:]
    gain = gain_between(first, second, labels, "logits", level=0.9)
    accuracies = [evaluate_committee(members, labels, rule="logits").accuracy for members in (first, second)]
    assert gain.mean == pytest.approx(accuracies[0] - accuracies[1])
    assert gain.level == 0.9
    assert gain.low < gain.mean < gain.high
    opposite = gain_between(second, first, labels, "logits", level=0.9)
    assert opposite.mean == -gain.mean
    assert opposite.low < opposite.mean < opposite.high


@pytest.mark.parametrize("values", [[-1.0, 0.0, 1.0], [-0.75, -0.5, 0.0, 0.25, 1.0]])
def test_bootstrap_equals_scipy_and_theory(values: list[float]) -> None:
    rng = np.random.default_rng(0)
    difference = rng.choice(values, size=800)
    interval = paired_bootstrap(torch.from_numpy(difference), resamples=20_000, level=0.9)
    assert interval.mean == pytest.approx(difference.mean())
    error = difference.std() / np.sqrt(len(difference))
    width = stats.norm.ppf(0.95) * error
    tolerance = 0.05 * error
    assert interval[:3] == pytest.approx([difference.mean() + x for x in (0, -width, width)], abs=tolerance)
    theirs = stats.bootstrap(
        (difference,), np.mean, n_resamples=3000, confidence_level=0.9, method="percentile", batch=500, rng=rng
    ).confidence_interval
    assert interval[1:3] == pytest.approx([theirs.low, theirs.high], abs=3 * tolerance)


def test_interval_covers_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    samples = torch.from_numpy(rng.choice([-1.0, 0.0, 1.0], p=[0.1, 0.75, 0.15], size=(400, 500)))
    intervals = [paired_bootstrap(sample, resamples=500, seed=seed) for seed, sample in enumerate(samples)]
    covered = np.mean([interval.low <= 0.05 <= interval.high for interval in intervals])
    # Three standard errors of 400 repetitions around 0.95.
    assert covered == pytest.approx(0.95, abs=0.033)


def test_bootstrap_is_seeded_and_takes_degenerate_differences() -> None:
    difference = torch.linspace(-1, 1, 50)
    assert paired_bootstrap(difference, seed=1) == paired_bootstrap(difference, seed=1)
    assert paired_bootstrap(difference, seed=1) != paired_bootstrap(difference, seed=2)
    assert paired_bootstrap(torch.zeros(10)) == NOTHING
    assert paired_bootstrap(torch.zeros(1)) == NOTHING
    assert paired_bootstrap(torch.ones(3), resamples=1, level=0.5) == Interval(1.0, 1.0, 1.0, 0.5)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("difference", "options", "message"),
    [
        (torch.zeros(0), {}, r"difference must be one finite number per image, but got numbers of shape \(0,\)"),
        (torch.zeros(2, 2), {}, r"difference must be .* shape \(2, 2\)"),
        (torch.tensor([0.0, np.nan]), {}, r"difference must be .* got NaN of shape \(2,\)"),
        (torch.zeros(2), {"resamples": 0}, "resamples must be at least 1, but got 0"),
        (torch.zeros(2), {"level": 95}, "level must be between 0 and 1, but got 95"),
    ],
)
def test_bad_bootstrap_is_refused(difference: Tensor, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(difference, **options)


@pytest.mark.parametrize(
    ("logits", "message"),
    [
        (torch.zeros(2, 3), r"logits must have shape \(members, images, labels\), none of them 0, but got \(2, 3\)"),
        (torch.zeros(0, 4, 3), r"logits must have shape .* \(0, 4, 3\)"),
        (torch.zeros(2, 0, 3), r"logits must have shape .* \(2, 0, 3\)"),
        (torch.tensor([[[0.0, 1.0]], [[0.0, np.nan]]]), "logits must be finite, but got NaN in member 1"),
        (torch.tensor([[[0.0, -np.inf]], [[0.0, 1.0]]]), "logits must be finite, but got infinity in member 0"),
    ],
)
def test_bad_logits_are_refused(logits: Tensor, message: str) -> None:
    labels = torch.zeros(logits.shape[1], dtype=torch.int64)
    for function in (member_scores, committee_predictions):
        with pytest.raises(ValueError, match=message):
            function(logits)
    scored: list[Callable[..., Any]] = [subset_accuracies, greedy_selection, evaluate_committee]
    for function in scored:
        with pytest.raises(ValueError, match=message):
            function(logits, labels)
    with pytest.raises(ValueError, match=message):
        gain_between(logits, torch.zeros(1, 4, 3), labels)
    with pytest.raises(ValueError, match="but got NaN in member 0"):
        gain_between(torch.zeros(1, 1, 2), torch.full((1, 1, 2), np.nan), torch.tensor([0]))


@pytest.mark.parametrize("labels", [[0, 1], [0, 1, 3], [0, -1, 1], [0.0, 1.0, 2.0]])
def test_bad_labels_are_refused(labels: list[float]) -> None:
    logits, targets = torch.zeros(2, 3, 3), torch.tensor(labels)
    functions: list[Callable[..., Any]] = [subset_accuracies, greedy_selection, evaluate_committee]
    for function in functions:
        with pytest.raises(ValueError, match="labels must be 3 integers from 0 to 2, but got torch"):
            function(logits, targets)
    with pytest.raises(ValueError, match="labels must be 3 integers"):
        gain_between(logits, logits, targets)


@pytest.mark.usefixtures("unchecked")
def test_unknown_rule_and_bad_predictions_are_refused() -> None:
    for function in (member_scores, committee_predictions):
        with pytest.raises(ValueError, match=r"rule must be one of .*, but got 'mean'"):
            function(torch.zeros(1, 1, 2), "mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"predictions must have shape \(members, images\), .* got \(3,\)"):
        disagreement(torch.zeros(3))


def test_members_of_one_test_set_are_accepted() -> None:
    logits, labels = _random_members(3)
    check_members(["a", "b", "c"], ["f", "f", "f"], [labels, labels.clone(), labels], list(logits))
    check_members(["a"], ["f"], [labels], [logits[0]])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprints": ["f", "f", "g"]}, "members a and c are of different test sets: fingerprints 'f' and 'g'"),
        ({"labels": [torch.tensor([0, 1])] * 2 + [torch.tensor([1, 1])]}, "members a and c .* their labels differ"),
        ({"labels": [torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([0, 1])]}, "members a and b .* labels"),
        (
            {"logits": [torch.zeros(2, 2), torch.zeros(2, 3), torch.zeros(2, 2)]},
            r"members a and b have logits of different shapes: \(2, 2\) and \(2, 3\)",
        ),
        (
            {"logits": [torch.zeros(2, 2), torch.zeros(2, 2), torch.full((2, 2), np.nan)]},
            "logits of member c must be finite, but got NaN",
        ),
        ({"logits": [torch.full((2, 2), np.inf)] * 3}, "logits of member a must be finite, but got infinity"),
        ({"names": [], "fingerprints": [], "labels": [], "logits": []}, "at least one member, but got none"),
    ],
)
def test_members_that_do_not_belong_together_are_refused(change: dict[str, Any], message: str) -> None:
    members: dict[str, Any] = {
        "names": ["a", "b", "c"],
        "fingerprints": ["f"] * 3,
        "labels": [torch.tensor([0, 1])] * 3,
        "logits": [torch.zeros(2, 2)] * 3,
    }
    with pytest.raises(ValueError, match=message) as caught:
        check_members(**(members | change))
    assert "\n" not in str(caught.value)
