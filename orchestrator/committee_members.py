"""Finalist runs as members of committees, and which of them form one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from torch import Tensor

from lsmha.committees import check_members
from lsmha.config import ModelConfig
from lsmha.training.logits import load_logits
from lsmha.training.saved import load_model_config
from orchestrator.errors import UserError
from orchestrator.ledger import Ledger

MAX_OF_A_GROUP = 64
"""Committees of one group and size that are scored one by one."""


@dataclass(frozen=True, eq=False)
class Member:
    """A finalist run as a member of committees."""

    id: str
    """`t0007-s1`, with the name of its run in front where there are several."""
    model: ModelConfig
    """The architecture: equal for runs that differ in the seed alone."""
    seed: int
    latency_ms: float | None
    val_accuracy: float
    val_logits: Tensor
    """(n_val, K)"""
    val_labels: Tensor
    logits: Tensor
    """(n, K) of the test images."""
    labels: Tensor
    fingerprint: str
    """Of the test set."""

    @property
    def is_cnn(self) -> bool:
        return self.model.num_conv_blocks == self.model.depth


def load_members(ledgers: Sequence[Ledger]) -> list[Member]:
    """The completed finalists of the runs.

    Raises:
        UserError: Logits are missing, or they are of different test sets.
    """
    members = []
    for ledger in ledgers:
        for record in ledger.finalists:
            if not record.completed:
                continue
            folder = ledger.finalist_folder(record.id)
            name = record.id if len(ledgers) == 1 else f"{ledger.folder.name}/{record.id}"
            try:
                val, test = load_logits(folder, "val"), load_logits(folder, "test")
                model = load_model_config(folder)
            except (OSError, ValueError) as error:
                raise UserError(f"RUN: logits of finalist {name} cannot be read: {error}") from None
            assert record.val_accuracy is not None
            members.append(
                Member(
                    id=name,
                    model=model.canonical(),
                    seed=record.seed,
                    latency_ms=record.latency_ms,
                    val_accuracy=record.val_accuracy,
                    val_logits=val.logits,
                    val_labels=val.labels,
                    logits=test.logits,
                    labels=test.labels,
                    fingerprint=test.fingerprint,
                )
            )
    if members:
        try:
            check_members(
                [member.id for member in members],
                [member.fingerprint for member in members],
                [member.labels for member in members],
                [member.logits for member in members],
            )
        except ValueError as error:
            raise UserError(f"RUN: {error}") from None
    return members


Group = tuple[str, list[tuple[int, ...]]]


def committee_groups(members: Sequence[Member]) -> list[Group]:
    """Which members form committees: name of a group, and its committees as indices, all of the same size.

    - `all`: all networks with attention together.
    - `mixed_heads`: one network for each head count, the same seed throughout; where several architectures share a head
      count, the one of the best validation accuracy.
    - `same_architecture`: one architecture, trained from different seeds.
    - `cnn`: plain CNNs of different architectures, the same seed throughout; and `cnn_same_architecture`.

    To compare with `same_architecture` at equal size, mixed committees are also formed of any subset of the head counts
    that is as large as the number of seeds.
    """
    with_attention = [index for index, member in enumerate(members) if not member.is_cnn]
    cnns = [index for index, member in enumerate(members) if member.is_cnn]
    groups: list[Group] = []
    if len(with_attention) > 1:
        groups.append(("all", [tuple(with_attention)]))
    for name, kind, seeds_name in (
        ("mixed_heads", with_attention, "same_architecture"),
        ("cnn", cnns, "cnn_same_architecture"),
    ):
        by_architecture: dict[ModelConfig, dict[int, int]] = defaultdict(dict)
        for index in kind:
            by_architecture[members[index].model].setdefault(members[index].seed, index)
        distinct = _best_of_each_head_count(members, by_architecture) if kind is with_attention else by_architecture
        same = [tuple(runs.values()) for runs in by_architecture.values() if len(runs) > 1]
        sizes = {len(distinct)} | {len(runs) for runs in same}
        for size in sorted(size for size in sizes if 1 < size <= len(distinct)):
            mixed = [
                tuple(runs[seed] for runs in chosen)
                for chosen in combinations(distinct.values(), size)
                for seed in sorted(set.intersection(*(set(runs) for runs in chosen)))
            ]
            if mixed:
                groups.append((name, mixed[:MAX_OF_A_GROUP]))
        for size in sorted({len(runs) for runs in same}):
            groups.append((seeds_name, [runs for runs in same if len(runs) == size]))
    return groups


def _best_of_each_head_count(
    members: Sequence[Member], by_architecture: dict[ModelConfig, dict[int, int]]
) -> dict[ModelConfig, dict[int, int]]:
    def accuracy(runs: dict[int, int]) -> float:
        return sum(members[index].val_accuracy for index in runs.values()) / len(runs)

    best: dict[int, ModelConfig] = {}
    for model, runs in by_architecture.items():
        rival = best.get(model.num_heads)
        if rival is None or accuracy(runs) > accuracy(by_architecture[rival]):
            best[model.num_heads] = model
    return {best[heads]: by_architecture[best[heads]] for heads in sorted(best)}
