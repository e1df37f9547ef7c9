"""What committees of finalists gain, and what they cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import ray
import torch
from torch import Tensor

from lsmha.committees import (
    committee_predictions,
    evaluate_committee,
    greedy_selection,
    paired_bootstrap,
    subset_accuracies,
)
from lsmha.config import Rule
from lsmha.data import Dataset
from lsmha.io.paths import RunPath
from lsmha.progress import OnProgress
from lsmha.training.saved import StoredLogits
from orchestrator.config.sweep import CommitteesConfig
from orchestrator.errors import UserError
from orchestrator.execution.tasks import run_tasks
from orchestrator.reporting.plots import plot_committees
from orchestrator.reporting.progress import Progress
from orchestrator.run_folder.committee_rows import (
    CommitteeContrast,
    CommitteeGroup,
    CommitteeRow,
    CommitteeSize,
    ScoredCommittee,
)
from orchestrator.run_folder.content_hash import content_hash
from orchestrator.run_folder.ledger import Ledger
from orchestrator.run_folder.records import CommitteesRecord
from orchestrator.run_folder.tables import write_tables
from orchestrator.stages.committee_groups import Group, Member, committee_groups, load_members
from orchestrator.stages.outcomes import Outcomes


@dataclass(frozen=True)
class CommitteesJob:
    """The committees of one run's finalists."""

    id: str
    run: RunPath


def committees_of_run(job: CommitteesJob, _: Dataset, __: torch.device, on_progress: OnProgress) -> list[CommitteeRow]:
    """Rows of `committees.parquet`, from the logits in the run's folder; none with fewer than two finalists."""
    ledger = Ledger.load(job.run)
    return form_committees(
        load_members([ledger]),
        ledger.config.committees,
        seed=ledger.config.seed,
        on_progress=lambda done, total: on_progress("groups", done, total),
    )


def form_committees_of(ledger: Ledger, progress: Progress, *, arrays: ray.ObjectRef) -> bool:
    """Form a run's committees in a Ray task and record them, unless just these are recorded; returns whether that went
    well."""
    before = ledger.committees
    if sum(record.completed for record in ledger.finalists) < 2 or (before and before.key == committees_key(ledger)):
        return True

    def keep(_: str, rows: list[CommitteeRow]) -> str:
        record_committees(ledger, rows)
        return f"{sum(isinstance(row, ScoredCommittee) for row in rows)} scored"

    progress.stage("committees", 1, unit="pool of finalists")
    outcomes = Outcomes(progress, keep=keep)
    job = CommitteesJob("committees", ledger.folder)
    run_tasks(committees_of_run, [job], outcomes, cpus=1, gpus=0, arrays=arrays)
    return not outcomes.failures


def committees_key(ledger: Ledger) -> str:
    """Hash of the committees of all finalists that a run has now."""
    members = sorted(record.key for record in ledger.finalists if record.completed)
    settings = ledger.config.committees.model_dump(mode="json")
    return content_hash({"members": members, "settings": settings, "seed": ledger.config.seed})


def record_committees(ledger: Ledger, rows: list[CommitteeRow]) -> None:
    """Keep a run's committees and draw them."""
    ledger.add(CommitteesRecord(committees_key(ledger), rows))
    write_tables(ledger)
    plot_committees(rows, ledger.folder / "committees.png", title=ledger.config.name)


@dataclass(frozen=True)
class _Pool:
    """Members and what their committees are scored on."""

    members: Sequence[Member]
    logits: Tensor
    """(M, n, K) of the test images."""
    labels: Tensor
    """(n,)"""
    config: CommitteesConfig
    seed: int


def form_committees(
    members: Sequence[Member],
    config: CommitteesConfig,
    *,
    seed: int,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> list[CommitteeRow]:
    """Rows of `committees.parquet` (`run_folder.committee_rows`): every committee, the mean of each group, mixed head
    counts against one architecture, and accuracy by the number of members.

    Intervals are 95 % bootstraps over test images. Gains over the best member are over the best on these very images.
    """
    if len(members) < 2:
        return []
    pool = _Pool(members, torch.stack([member.logits for member in members]), members[0].labels, config, seed)
    groups = committee_groups(members)
    rows: list[CommitteeRow] = []
    steps = len(groups) * len(config.rules) + 2
    for number, rule in enumerate(config.rules):
        correct: dict[tuple[str, int], Tensor] = {}
        for place, group in enumerate(groups):
            of_group, correct[group.name, group.size] = _group_rows(pool, group, rule)
            rows += of_group
            on_progress(number * len(groups) + place + 1, steps)
        rows += _contrast_rows(pool, correct, rule)
    for step, (name, is_cnn) in enumerate((("all", False), ("cnn", True))):
        chosen = [index for index, member in enumerate(members) if member.is_cnn == is_cnn]
        rows += _size_rows(pool, name, chosen)
        on_progress(steps - 1 + step, steps)
    return rows


def _group_rows(pool: _Pool, group: Group, rule: Rule) -> tuple[list[CommitteeRow], Tensor]:
    """Rows of a group's committees and of their mean, and its correctness (n,)."""
    scored = [_scored(pool, group.name, rule, chosen) for chosen in group.committees]
    correct, over_best, over_mean = _correctness(pool, group.committees, rule)
    mean = CommitteeGroup(
        group=group.name,
        rule=rule,
        size=group.size,
        num_committees=len(group.committees),
        num_possible=group.num_possible,
        accuracy=correct.mean().item(),
        best_member_accuracy=_mean(row.best_member_accuracy for row in scored),
        mean_member_accuracy=_mean(row.mean_member_accuracy for row in scored),
        **_interval(pool, "gain_over_best", over_best),
        **_interval(pool, "gain_over_mean", over_mean),
        mean_disagreement=_mean(row.mean_disagreement for row in scored),
        latency_sum_ms=_mean(row.latency_sum_ms for row in scored),
        latency_max_ms=_mean(row.latency_max_ms for row in scored),
    )
    return [*scored, mean], correct


def _contrast_rows(pool: _Pool, correct: Mapping[tuple[str, int], Tensor], rule: Rule) -> Iterator[CommitteeContrast]:
    """Mixed head counts against one architecture of as many members, by the correctness (n,) of each group."""
    for (name, size), mixed in correct.items():
        same = correct.get(("same_architecture", size))
        if name == "mixed_heads" and same is not None:
            yield CommitteeContrast(
                group="mixed_heads - same_architecture",
                rule=rule,
                size=size,
                accuracy=mixed.mean().item(),
                **_interval(pool, "gain", mixed - same),
            )


def _scored(pool: _Pool, group: str, rule: Rule, chosen: tuple[int, ...]) -> ScoredCommittee:
    members = [pool.members[index] for index in chosen]
    result = evaluate_committee(
        pool.logits[list(chosen)], pool.labels, rule=rule, seed=pool.seed, resamples=pool.config.resamples
    )
    known = [member.latency_ms for member in members if member.latency_ms is not None]
    complete = len(known) == len(members)
    return ScoredCommittee(
        group=group,
        rule=rule,
        size=result.size,
        num_committees=1,
        members=[member.id for member in members],
        num_heads=[member.model.num_heads for member in members],
        accuracy=result.accuracy,
        best_member=members[result.best_member].id,
        best_member_accuracy=max(result.member_accuracies),
        mean_member_accuracy=result.mean_member_accuracy,
        gain_over_best=result.gain_over_best.mean,
        gain_over_best_low=result.gain_over_best.low,
        gain_over_best_high=result.gain_over_best.high,
        gain_over_mean=result.gain_over_mean.mean,
        gain_over_mean_low=result.gain_over_mean.low,
        gain_over_mean_high=result.gain_over_mean.high,
        mean_disagreement=result.mean_disagreement,
        latency_sum_ms=sum(known) if complete else None,
        latency_max_ms=max(known) if complete else None,
        test_images=len(pool.labels),
    )


def _correctness(pool: _Pool, committees: Sequence[tuple[int, ...]], rule: Rule) -> tuple[Tensor, Tensor, Tensor]:
    """Per image (n,), and as a mean over the committees: correctness, and its lead over best and over mean member."""
    alone = (pool.logits.argmax(dim=2) == pool.labels).double()
    correct, over_best, over_mean = [], [], []
    for chosen in committees:
        right = (committee_predictions(pool.logits[list(chosen)], rule) == pool.labels).double()
        own = alone[list(chosen)]
        correct.append(right)
        over_best.append(right - own[own.mean(dim=1).argmax()])
        over_mean.append(right - own.mean(dim=0))
    return torch.stack(correct).mean(dim=0), torch.stack(over_best).mean(dim=0), torch.stack(over_mean).mean(dim=0)


def _interval(pool: _Pool, name: str, difference: Tensor) -> dict[str, float]:
    interval = paired_bootstrap(difference, resamples=pool.config.resamples, seed=pool.seed)
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _validation(members: Sequence[Member]) -> tuple[Tensor, Tensor]:
    """Validation logits (M, n_val, K) and their labels.

    Raises:
        UserError: A member has none, or they are of different validation images.
    """
    first = members[0].validation
    known: list[StoredLogits] = []
    for member in members:
        stored = member.validation
        if stored is None or first is None or not torch.equal(stored.labels, first.labels):
            raise UserError(
                f"RUN: {len(members)} members are chosen by validation logits, which must be of the same images, "
                f"but those of {members[0].id} and {member.id} are missing or of others"
            )
        known.append(stored)
    return torch.stack([stored.logits for stored in known]), known[0].labels


def _size_rows(pool: _Pool, group: str, chosen: Sequence[int]) -> list[CommitteeSize]:
    """Accuracy by the number of members, out of those chosen."""
    if len(chosen) < 2:
        return []
    rule, max_exhaustive = pool.config.rules[0], pool.config.max_exhaustive
    logits = pool.logits[list(chosen)]
    accuracies: dict[int, list[float]] = defaultdict(list)
    if len(chosen) <= max_exhaustive:
        selection = "every subset"
        for subset in subset_accuracies(logits, pool.labels, rule, max_members=max_exhaustive):
            accuracies[len(subset.members)].append(subset.accuracy)
    else:
        selection = "greedy by validation accuracy"
        order = greedy_selection(*_validation([pool.members[index] for index in chosen]), rule)
        for size in range(1, len(order) + 1):
            right = committee_predictions(logits[list(order[:size])], rule) == pool.labels
            accuracies[size].append(right.double().mean().item())
    return [
        CommitteeSize(
            group=group,
            rule=rule,
            size=size,
            selection=selection,
            num_committees=len(values),
            accuracy=sum(values) / len(values),
            lowest_accuracy=min(values),
            highest_accuracy=max(values),
        )
        for size, values in sorted(accuracies.items())
    ]
