"""What committees of finalists gain, and what they cost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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
from orchestrator.config.sweep import CommitteesConfig
from orchestrator.errors import UserError
from orchestrator.execution.tasks import run_tasks
from orchestrator.reporting.committee_plot import plot_committees
from orchestrator.reporting.progress import Progress
from orchestrator.run_folder.content_hash import key_of
from orchestrator.run_folder.ledger import Ledger
from orchestrator.stages.committee_groups import Member, committee_groups, load_members
from orchestrator.stages.outcomes import Outcomes


@dataclass(frozen=True)
class CommitteesJob:
    """The committees of one run's finalists."""

    id: str
    run: RunPath


def committees_of_run(
    job: CommitteesJob, _: Dataset, __: torch.device, on_progress: OnProgress
) -> list[dict[str, Any]]:
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
    if sum(record.completed for record in ledger.finalists) < 2 or ledger.committees_key == committees_key(ledger):
        return True

    def keep(_: str, rows: list[dict[str, Any]]) -> str:
        record_committees(ledger, rows)
        return f"{sum(row['kind'] == 'committee' for row in rows)} scored"

    progress.stage("committees", 1, unit="pool of finalists")
    outcomes = Outcomes(progress, keep=keep)
    job = CommitteesJob("committees", ledger.folder)
    run_tasks(committees_of_run, [job], outcomes, cpus=1, gpus=0, arrays=arrays)
    return not outcomes.failures


def committees_key(ledger: Ledger) -> str:
    """Key of the committees of all finalists that a run has now."""
    members = sorted(record.key for record in ledger.finalists if record.completed)
    settings = ledger.config.committees.model_dump(mode="json")
    return key_of({"members": members, "settings": settings, "seed": ledger.config.seed})


def record_committees(ledger: Ledger, rows: list[dict[str, Any]]) -> None:
    """Keep a run's committees and draw them."""
    ledger.set_committees(committees_key(ledger), rows)
    ledger.write_tables()
    plot_committees(rows, ledger.folder / "committees.png", title=ledger.config.name)


def form_committees(
    members: Sequence[Member],
    config: CommitteesConfig,
    *,
    seed: int,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> list[dict[str, Any]]:
    """Rows of `committees.parquet`, by `kind`:

    - `committee`: one committee, with its gain over its best and over its mean member.
    - `group`: the mean of a group's committees of one size, with the gain of that mean.
    - `contrast`: `mixed_heads` against `same_architecture` of the same size.
    - `size`: committees of one size out of all members with attention (`all`) or all CNNs (`cnn`): mean, worst and best
      accuracy of every subset, or of the one that a greedy selection by validation accuracy gives.

    Intervals are 95 % bootstraps over test images. Gains over the best member are over the best on these very images.
    """
    if len(members) < 2:
        return []
    logits, labels = torch.stack([member.logits for member in members]), members[0].labels
    groups = committee_groups(members)
    rows: list[dict[str, Any]] = []
    steps = len(groups) * len(config.rules) + 2
    for rule in config.rules:
        gains: dict[tuple[str, int], Tensor] = {}
        for number, group in enumerate(groups):
            one_by_one = [
                _committee_row(group.name, rule, members, chosen, logits, labels, config, seed)
                for chosen in group.committees
            ]
            rows += one_by_one
            correct, over_best, over_mean = _correctness(group.committees, logits, labels, rule)
            gains[group.name, group.size] = correct
            rows.append(
                {
                    "kind": "group",
                    "group": group.name,
                    "rule": rule,
                    "size": group.size,
                    "num_committees": len(group.committees),
                    "num_possible": group.num_possible,
                    "accuracy": correct.mean().item(),
                    "best_member_accuracy": _mean(row["best_member_accuracy"] for row in one_by_one),
                    "mean_member_accuracy": _mean(row["mean_member_accuracy"] for row in one_by_one),
                    **_interval("gain_over_best", over_best, config, seed),
                    **_interval("gain_over_mean", over_mean, config, seed),
                    "mean_disagreement": _mean(row["mean_disagreement"] for row in one_by_one),
                    "latency_sum_ms": _mean(row["latency_sum_ms"] for row in one_by_one),
                    "latency_max_ms": _mean(row["latency_max_ms"] for row in one_by_one),
                }
            )
            on_progress(config.rules.index(rule) * len(groups) + number + 1, steps)
        for (name, size), correct in gains.items():
            other = gains.get(("same_architecture", size))
            if name == "mixed_heads" and other is not None:
                rows.append(
                    {
                        "kind": "contrast",
                        "group": "mixed_heads - same_architecture",
                        "rule": rule,
                        "size": size,
                        "accuracy": correct.mean().item(),
                        **_interval("gain", correct - other, config, seed),
                    }
                )
    for step, (name, is_cnn) in enumerate((("all", False), ("cnn", True))):
        pool = [index for index, member in enumerate(members) if member.is_cnn == is_cnn]
        rows += _size_rows(name, members, pool, config.rules[0], config.max_exhaustive)
        on_progress(steps - 1 + step, steps)
    return rows


def _committee_row(
    group: str,
    rule: Rule,
    members: Sequence[Member],
    chosen: tuple[int, ...],
    logits: Tensor,
    labels: Tensor,
    config: CommitteesConfig,
    seed: int,
) -> dict[str, Any]:
    result = evaluate_committee(logits[list(chosen)], labels, rule=rule, seed=seed, resamples=config.resamples)
    latencies = [members[index].latency_ms for index in chosen]
    known = [latency for latency in latencies if latency is not None]
    complete = len(known) == len(latencies)
    return {
        "kind": "committee",
        "group": group,
        "rule": rule,
        "size": result.size,
        "num_committees": 1,
        "members": [members[index].id for index in chosen],
        "num_heads": [members[index].model.num_heads for index in chosen],
        "accuracy": result.accuracy,
        "best_member": members[chosen[result.best_member]].id,
        "best_member_accuracy": max(result.member_accuracies),
        "mean_member_accuracy": result.mean_member_accuracy,
        "gain_over_best": result.gain_over_best.mean,
        "gain_over_best_low": result.gain_over_best.low,
        "gain_over_best_high": result.gain_over_best.high,
        "gain_over_mean": result.gain_over_mean.mean,
        "gain_over_mean_low": result.gain_over_mean.low,
        "gain_over_mean_high": result.gain_over_mean.high,
        "mean_disagreement": result.mean_disagreement,
        "latency_sum_ms": sum(known) if complete else None,
        "latency_max_ms": max(known) if complete else None,
        "test_images": len(labels),
    }


def _correctness(
    committees: Sequence[tuple[int, ...]], logits: Tensor, labels: Tensor, rule: Rule
) -> tuple[Tensor, Tensor, Tensor]:
    """Per image (n,), and as a mean over the committees: correctness, and its lead over best and over mean member."""
    alone = (logits.argmax(dim=2) == labels).double()
    correct, over_best, over_mean = [], [], []
    for chosen in committees:
        right = (committee_predictions(logits[list(chosen)], rule) == labels).double()
        own = alone[list(chosen)]
        correct.append(right)
        over_best.append(right - own[own.mean(dim=1).argmax()])
        over_mean.append(right - own.mean(dim=0))
    return torch.stack(correct).mean(dim=0), torch.stack(over_best).mean(dim=0), torch.stack(over_mean).mean(dim=0)


def _interval(name: str, difference: Tensor, config: CommitteesConfig, seed: int) -> dict[str, float]:
    interval = paired_bootstrap(difference, resamples=config.resamples, seed=seed)
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _validation(pool: Sequence[Member]) -> tuple[Tensor, Tensor]:
    """Validation logits (M, n_val, K) and their labels.

    Raises:
        UserError: A member has none, or they are of different validation images.
    """
    stored = [member.validation for member in pool]
    first = stored[0]
    for member, one in zip(pool, stored, strict=True):
        if one is None or first is None or not torch.equal(one.labels, first.labels):
            raise UserError(
                f"RUN: {len(pool)} members are chosen by validation logits, which must be of the same images, "
                f"but those of {pool[0].id} and {member.id} are missing or of others"
            )
    known = [one for one in stored if one is not None]
    return torch.stack([one.logits for one in known]), known[0].labels


def _size_rows(
    group: str, members: Sequence[Member], pool: list[int], rule: Rule, max_exhaustive: int
) -> list[dict[str, Any]]:
    if len(pool) < 2:
        return []
    logits, labels = torch.stack([members[index].logits for index in pool]), members[pool[0]].labels
    accuracies: dict[int, list[float]] = defaultdict(list)
    if len(pool) <= max_exhaustive:
        selection = "every subset"
        for subset in subset_accuracies(logits, labels, rule, max_members=max_exhaustive):
            accuracies[len(subset.members)].append(subset.accuracy)
    else:
        selection = "greedy by validation accuracy"
        order = greedy_selection(*_validation([members[index] for index in pool]), rule)
        for size in range(1, len(order) + 1):
            right = committee_predictions(logits[list(order[:size])], rule) == labels
            accuracies[size].append(right.double().mean().item())
    return [
        {
            "kind": "size",
            "group": group,
            "rule": rule,
            "size": size,
            "selection": selection,
            "num_committees": len(values),
            "accuracy": sum(values) / len(values),
            "lowest_accuracy": min(values),
            "highest_accuracy": max(values),
        }
        for size, values in sorted(accuracies.items())
    ]
