"""Rows of `committees.parquet`, one class for each kind. Accuracies and gains are fractions of 1, intervals 95 %."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from lsmha.config import Rule


@dataclass(frozen=True)
class CommitteeRow:
    """What the rows have in common."""

    kind: ClassVar[str]
    group: str
    """Such as `mixed_heads`; see `stages.committee_groups`."""
    rule: Rule
    size: int
    """Members."""

    def row(self) -> dict[str, Any]:
        """The row of the table."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class ScoredCommittee(CommitteeRow):
    """One committee, with its gain over its best and over its mean member."""

    kind = "committee"
    num_committees: int
    """1."""
    members: list[str]
    num_heads: list[int]
    accuracy: float
    best_member: str
    best_member_accuracy: float
    """Best on these very test images: the hardest reference there is."""
    mean_member_accuracy: float
    gain_over_best: float
    gain_over_best_low: float
    gain_over_best_high: float
    gain_over_mean: float
    gain_over_mean_low: float
    gain_over_mean_high: float
    mean_disagreement: float | None
    latency_sum_ms: float | None
    latency_max_ms: float | None
    test_images: int


@dataclass(frozen=True)
class CommitteeGroup(CommitteeRow):
    """The mean of a group's committees of one size, with the gain of that mean."""

    kind = "group"
    num_committees: int
    num_possible: int
    """Committees that there are; those scored are a part of them, spread evenly, where there are many."""
    accuracy: float
    best_member_accuracy: float | None
    mean_member_accuracy: float | None
    gain_over_best: float
    gain_over_best_low: float
    gain_over_best_high: float
    gain_over_mean: float
    gain_over_mean_low: float
    gain_over_mean_high: float
    mean_disagreement: float | None
    latency_sum_ms: float | None
    latency_max_ms: float | None


@dataclass(frozen=True)
class CommitteeContrast(CommitteeRow):
    """`mixed_heads` against `same_architecture` of the same size."""

    kind = "contrast"
    accuracy: float
    """Of the mixed ones."""
    gain: float
    gain_low: float
    gain_high: float


@dataclass(frozen=True)
class CommitteeSize(CommitteeRow):
    """Committees of one size out of all members with attention (`all`) or all CNNs (`cnn`)."""

    kind = "size"
    selection: str
    """How they were chosen: every subset, or greedily by validation accuracy."""
    num_committees: int
    accuracy: float
    """Mean over the committees."""
    lowest_accuracy: float
    highest_accuracy: float


_KINDS: dict[str, type[CommitteeRow]] = {
    kind.kind: kind for kind in (ScoredCommittee, CommitteeGroup, CommitteeContrast, CommitteeSize)
}


def committee_row(row: Mapping[str, Any]) -> CommitteeRow:
    """The row that `CommitteeRow.row` gave as plain values.

    Raises:
        KeyError: There is no such kind.
        TypeError: It has other columns.
    """
    values = dict(row)
    return _KINDS[values.pop("kind")](**values)
