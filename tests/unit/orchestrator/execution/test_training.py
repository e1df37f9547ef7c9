"""Jobs trained epoch by epoch: what is told when, alone, together, and after a break."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_data import tiny_dataset, tiny_model, tiny_recipe

from lsmha.devices.compute_plan import ComputePlan, Promise
from lsmha.models.attention import AttentionKernels
from lsmha.training.checkpoints import checkpoint_files
from orchestrator.execution.training import train_jobs
from orchestrator.execution.training_job import (
    Completed,
    Disturbed,
    EpochEnded,
    Resumed,
    TrainingEvent,
    TrainingJob,
    Warned,
)


def job(folder: Path, name: str = "a", *, seed: int = 0, epochs: int = 3) -> TrainingJob:
    recipe = tiny_recipe(epochs=epochs, seed=seed, precision="fp32")
    model = tiny_model(attention="materialized", drop_path=0.0, attn_drop=0.0)
    return TrainingJob(name, model, recipe, folder / f"{name}.pt")


def told(*jobs: TrainingJob, steps: int | None = None) -> list[list[TrainingEvent]]:
    """What is told after each epoch, of the first `steps` only."""
    epochs = train_jobs(jobs, tiny_dataset(), device=torch.device("cpu"), threads=1)
    return [events for _, events in zip(range(steps or 99), epochs, strict=False)]


def kinds(told: list[list[TrainingEvent]]) -> list[list[tuple[str, str]]]:
    return [[(event.job_id, type(event).__name__) for event in events] for events in told]


def losses(told: list[list[TrainingEvent]]) -> list[float]:
    return [event.metrics["val_loss"] for events in told for event in events if isinstance(event, EpochEnded)]


RESUMED, EPOCH, LAST_EPOCH = [("a", "Resumed")], [("a", "EpochEnded")], [("a", "EpochEnded"), ("a", "Completed")]


def test_each_epoch_is_told_and_the_end_with_the_last(tmp_path: Path) -> None:
    found = told(job(tmp_path))
    assert kinds(found) == [EPOCH, EPOCH, LAST_EPOCH]
    *_, end = found[-1]
    assert isinstance(end, Completed)
    assert [epoch["val_loss"] for epoch in end.result.curve] == losses(found)


def test_nothing_is_trained_before_somebody_asks(tmp_path: Path) -> None:
    one = job(tmp_path)
    told(one, steps=1)
    assert checkpoint_files(one.checkpoint)
    assert kinds(told(one)) == [RESUMED, EPOCH, LAST_EPOCH]  # one of three was trained before


def test_a_break_changes_nothing(tmp_path: Path) -> None:
    whole = losses(told(job(tmp_path, "whole")))
    broken = losses(told(job(tmp_path), steps=2)) + losses(told(job(tmp_path)))
    assert broken == whole


def test_a_run_that_has_nothing_left_to_train_is_completed(tmp_path: Path) -> None:
    told(job(tmp_path))
    assert kinds(told(job(tmp_path))) == [[("a", "Completed")]]


def test_damage_is_told_before_the_first_epoch(tmp_path: Path) -> None:
    told(job(tmp_path), steps=2)
    newest = tmp_path / "a.pt"
    newest.write_bytes(newest.read_bytes()[:-9])
    (first, *_) = told(job(tmp_path))
    assert isinstance(first[0], Warned)
    assert "a.pt is damaged" in first[0].message
    assert [type(event) for event in first[1:]] == [Resumed]


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_plan_made_beside_other_work_is_told(seeds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = ComputePlan("fp32", AttentionKernels("sdpa", "sdpa"), Promise(1e12, waited=0.42))
    again = ComputePlan("fp32", AttentionKernels("materialized", "sdpa"))
    monkeypatch.setattr(
        "lsmha.training.state.plan_training", lambda *_, device, once_more: again if once_more else busy
    )
    jobs = [job(tmp_path, name, seed=seed) for seed, name in enumerate("ab"[:seeds])]
    found = [
        [event.message for event in events if isinstance(event, Disturbed)]
        for events in told(*jobs)
    ]  # fmt: skip
    at_first = "precision fp32 and attention sdpa were chosen beside other work, which had the CPUs 42% of the time"
    later = "trained far slower than expected, so precision fp32 and attention materialized were measured once more"
    # Stacked seeds share one step, of which no plan promises anything.
    assert found == ([[at_first], [later], []] if seeds == 1 else [[at_first] * 2, [], []])


def test_seeds_are_trained_together(tmp_path: Path) -> None:
    found = told(job(tmp_path, "a", seed=0), job(tmp_path, "b", seed=1), job(tmp_path, "c", seed=2))
    every = [(name, "EpochEnded") for name in "abc"]
    assert kinds(found) == [every, every, [*every, *((name, "Completed") for name in "abc")]]


def test_seeds_that_were_broken_off_at_different_epochs_are_trained_one_by_one(tmp_path: Path) -> None:
    told(job(tmp_path, "a", seed=0), steps=1)
    found = kinds(told(job(tmp_path, "a", seed=0), job(tmp_path, "b", seed=1)))
    of_b = [[("b", kind) for _, kind in events] for events in (EPOCH, EPOCH, LAST_EPOCH)]
    assert found == [RESUMED, EPOCH, LAST_EPOCH, *of_b]


def test_what_is_not_foreseen_passes(tmp_path: Path) -> None:
    broken = replace(job(tmp_path), checkpoint=tmp_path / "no" / "such" / "folder" / "a.pt")
    (tmp_path / "no").write_text("a file")
    with pytest.raises(OSError, match="no"):
        told(broken)
