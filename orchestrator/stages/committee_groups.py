"""Finalist runs as members of committees, and which of them form one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from torch import Tensor

from lsmha.committees import check_members
from lsmha.config import ModelConfig
from lsmha.io.paths import RunPath
from lsmha.training.saved import StoredLogits, load_logits, load_model_config, logits_path
from orchestrator.errors import UserError
from orchestrator.run_folder.ledger import Ledger

MAX_COMMITTEES_OF_GROUP = 64
"""Committees of one group and size that are scored one by one."""


@dataclass(frozen=True, eq=False)
class Member:
    """A finalist run as a member of committees."""

    id: str
    """`t0007-s1`, with the name of its run in front where there are several."""
    run: str
    """Folder of its run."""
    trial: str
    """Trial of which it has the configuration, recipe included: with the run, what its seeds have in common."""
    model: ModelConfig
    """The architecture: equal for runs that differ in the seed alone."""
    seed: int
    latency_ms: float | None
    val_accuracy: float
    validation: StoredLogits | None
    """Logits (n_val, K) and labels, where the run stored them."""
    logits: Tensor
    """(n, K) of the test images."""
    labels: Tensor
    fingerprint: str
    """Of the test set."""

    @property
    def is_cnn(self) -> bool:
        return not self.model.has_attention


def load_members(ledgers: Sequence[Ledger]) -> list[Member]:
    """The completed finalists of the runs.

    Raises:
        UserError: Logits are missing, or they are of different test sets.
    """
    members = []
    names = _short_names([ledger.folder for ledger in ledgers])
    for ledger in ledgers:
        for record in ledger.finalists:
            if not record.completed:
                continue
            folder = ledger.finalist_folder(record.id)
            name = record.id if len(ledgers) == 1 else f"{names[ledger.folder]}/{record.id}"
            try:
                test = load_logits(folder, "test")
                validation = load_logits(folder, "val") if logits_path(folder, "val").exists() else None
                model = load_model_config(folder)
            except (OSError, ValueError) as error:
                raise UserError(f"RUN: logits of finalist {name} cannot be read: {error}") from None
            assert record.val_accuracy is not None
            members.append(
                Member(
                    id=name,
                    run=str(ledger.folder),
                    trial=record.trial,
                    model=model.canonical(),
                    seed=record.seed,
                    latency_ms=record.latency_ms,
                    val_accuracy=record.val_accuracy,
                    validation=validation,
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


def _short_names(folders: Sequence[RunPath]) -> dict[RunPath, str]:
    """The last part of each path, or as many as tell it from the others."""
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = {folder: "/".join(folder.parts[-length:]) for folder in folders}
        if len(set(names.values())) == len(folders):
            break
    return names


@dataclass(frozen=True)
class Group:
    """Committees of one kind and size."""

    name: str
    committees: list[tuple[int, ...]]
    """Indices of members."""
    num_possible: int
    """Committees that there are; `committees` is a part of them, spread evenly, where there are many."""

    @property
    def size(self) -> int:
        return len(self.committees[0])


Runs = dict[int, int]
"""Members of one network by their seed, as indices."""


def committee_groups(members: Sequence[Member]) -> list[Group]:
    """Which members form committees.

    - `all`: all networks with attention together.
    - `mixed_heads`: networks of different head counts, one for each count, and each from another seed as long as there
      are seeds. Where several networks share a head count, the one of the best validation accuracy represents it.
    - `same_architecture`: one of these very networks, trained from different seeds.
    - `cnn` and `cnn_same_architecture`: the same for plain CNNs of different architectures.

    Only seeds that all networks of a group have are used, so that at equal size mixed and same-architecture committees
    have the same members, each as often. A seed stands for an order of the images too: members that share one make
    mistakes in common, and would be no match for members that do not.
    """
    groups: list[Group] = []
    with_attention = [index for index, member in enumerate(members) if not member.is_cnn]
    if len(with_attention) > 1:
        groups.append(Group("all", [tuple(with_attention)], 1))
    for mixed_name, same_name, wanted in (
        ("mixed_heads", "same_architecture", False),
        ("cnn", "cnn_same_architecture", True),
    ):
        own = [(index, member) for index, member in enumerate(members) if member.is_cnn == wanted]
        networks = _representatives(own)
        if not networks:
            continue
        seeds = sorted(set.intersection(*(set(runs) for runs in networks)))
        mixed_sizes = {len(networks), len(seeds)} if len(seeds) <= len(networks) else {len(networks)}
        for size in sorted(size for size in mixed_sizes if size > 1 and seeds):
            mixed = [
                tuple(runs[seeds[(place + shift) % len(seeds)]] for place, runs in enumerate(some))
                for some in combinations(networks, size)
                for shift in range(len(seeds))
            ]
            groups.append(_spread(mixed_name, mixed))
        for size in sorted(size for size in {len(networks), len(seeds)} if 1 < size <= len(seeds)):
            same = [tuple(runs[seed] for seed in some) for runs in networks for some in combinations(seeds, size)]
            groups.append(_spread(same_name, same))
    return groups


def _representatives(candidates: Sequence[tuple[int, Member]]) -> list[Runs]:
    """One network for each head count (with attention) or architecture (CNNs): most seeds, then validation accuracy."""
    networks: dict[tuple[str, str], Runs] = defaultdict(dict)
    for index, member in candidates:
        networks[member.run, member.trial][member.seed] = index
    by_index = dict(candidates)

    def rank(runs: Runs) -> tuple[int, float]:
        return len(runs), sum(by_index[index].val_accuracy for index in runs.values()) / len(runs)

    best: dict[int | ModelConfig, Runs] = {}
    for runs in networks.values():
        member = by_index[next(iter(runs.values()))]
        kind = member.model if member.is_cnn else member.model.num_heads
        if kind not in best or rank(runs) > rank(best[kind]):
            best[kind] = runs
    return list(best.values())


def _spread(name: str, committees: list[tuple[int, ...]]) -> Group:
    count = len(committees)
    step = max(1.0, (count - 1) / (MAX_COMMITTEES_OF_GROUP - 1))
    chosen = [committees[round(place * step)] for place in range(min(count, MAX_COMMITTEES_OF_GROUP))]
    return Group(name, chosen, count)
