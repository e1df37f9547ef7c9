"""How jobs are trained, epoch by epoch: the one seam where `lsmha.training` meets the orchestration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from lsmha.data import Dataset
from lsmha.device_memory import free_memory
from lsmha.devices.hardware import UtilizationMeter
from lsmha.errors import DivergenceError, LsmhaError, MemoryShortageError
from lsmha.io.paths import RunPath
from lsmha.training import StackedTrainer, Trainer, TrainState
from lsmha.training.saved import save_logits, save_model
from orchestrator.execution.training_job import (
    Completed,
    Disturbed,
    EpochEnded,
    Failed,
    Metrics,
    Paused,
    Resumed,
    TrainingEvent,
    TrainingJob,
    TrainingResult,
    Warned,
)
from orchestrator.failures import failure_of


def train_jobs(
    jobs: Sequence[TrainingJob], dataset: Dataset, *, device: torch.device, threads: int
) -> Iterator[list[TrainingEvent]]:
    """Train jobs, those that differ by their seeds alone together where that is possible, else one after another.

    Yields what happened, before the first epoch of a job that goes on, and after each epoch, the last time with the end
    of the last job. Failures that are foreseen, and come again however often a run is tried (divergence, settings that
    do not fit), are told; other exceptions propagate.
    """
    _prepare(device, threads)
    if len(jobs) > 1 and (stack := _stack_of(jobs, dataset, device)) is not None:
        yield from _train_stack(stack, jobs, device)
        return
    for job in jobs:
        _prepare(device, threads)
        yield from _train_one(job, dataset, device)


def _train_one(job: TrainingJob, dataset: Dataset, device: torch.device) -> Iterator[list[TrainingEvent]]:
    utilization = UtilizationMeter(device)
    events: list[TrainingEvent] = []
    try:
        trainer = Trainer(job.model, job.train, dataset, device=device, memory=free_memory(device))
        trainer.resume(job.checkpoint, on_damage=lambda damage: events.append(Warned(job.id, damage)))
        state = trainer.state
        events += _disturbances(job, state)
        if 0 < state.epoch < job.last_epoch:
            yield [*events, _resumed(job, state)]
            events = []
        while state.epoch < job.last_epoch:
            metrics = trainer.run_epoch()
            if state.reconsider_plan():
                events.append(
                    Disturbed(job.id, f"trained far slower than expected, so {_plan(state)} measured once more")
                )
            if state.ranks.leads:
                state.save(job.checkpoint)
            events.append(EpochEnded(job.id, metrics.asdict(), _peak_memory_gib(device), utilization.read()))
            if state.epoch < job.last_epoch:  # the last one is told with the end
                yield events
                events = []
    except LsmhaError as error:
        events.append(Failed(job.id, failure_of(error)))
    else:
        paused = state.epoch < job.train.epochs
        events.append(Paused(job.id, _curve(state)) if paused else Completed(job.id, _result(state, job)))
    yield events


def _stack_of(jobs: Sequence[TrainingJob], dataset: Dataset, device: torch.device) -> _Stack | None:
    """Jobs that differ by their seeds alone, to be trained together; None where they were broken off at different
    epochs, or the memory is too small for all of them."""
    seeds = [job.train.seed for job in jobs]
    try:
        trainer = StackedTrainer(
            jobs[0].model, jobs[0].train, seeds, dataset, device=device, memory=free_memory(device)
        )
    except MemoryShortageError:
        return None
    damages: list[TrainingEvent] = []
    warn = [lambda damage, job=job: damages.append(Warned(job.id, damage)) for job in jobs]
    resumed = trainer.resume([job.checkpoint for job in jobs], on_damage=warn)
    return _Stack(trainer, damages) if resumed else None


class _Stack(NamedTuple):
    trainer: StackedTrainer
    damages: list[TrainingEvent]
    """What was met when it was resumed."""


def _train_stack(stack: _Stack, jobs: Sequence[TrainingJob], device: torch.device) -> Iterator[list[TrainingEvent]]:
    trainer, events = stack
    events += [event for job, state in zip(jobs, trainer.states, strict=True) for event in _disturbances(job, state)]
    utilization = UtilizationMeter(device)
    failed: set[str] = set()

    if 0 < trainer.states[0].epoch < jobs[0].train.epochs:
        yield [*events, *map(_resumed, jobs, trainer.states)]
        events = []

    def goes_on() -> bool:
        return trainer.states[0].epoch < jobs[0].train.epochs and len(failed) < len(jobs)

    while goes_on():
        outcomes = trainer.run_epoch()
        memory_gib, busy = _peak_memory_gib(device), utilization.read()
        for job, state, outcome in zip(jobs, trainer.states, outcomes, strict=True):
            if job.id in failed:
                continue
            if isinstance(outcome, DivergenceError):
                failed.add(job.id)
                events.append(Failed(job.id, failure_of(outcome)))
            else:
                state.save(job.checkpoint)
                events.append(EpochEnded(job.id, outcome.asdict(), memory_gib, busy))
        if goes_on():
            yield events
            events = []
    for job, state in zip(jobs, trainer.states, strict=True):
        if job.id not in failed:
            events.append(Completed(job.id, _result(state, job)))
    yield events


def _disturbances(job: TrainingJob, state: TrainState) -> list[TrainingEvent]:
    promise = state.plan.promise
    if promise is None or not promise.disturbed:
        return []
    busy = f"beside other work, which had the CPUs {promise.waited:.0%} of the time"
    return [Disturbed(job.id, f"{_plan(state)} chosen {busy}")]


def _plan(state: TrainState) -> str:
    return f"precision {state.plan.precision} and attention {state.plan.attention.training} were"


def _resumed(job: TrainingJob, state: TrainState) -> Resumed:
    return Resumed(job.id, _curve(state))


def _curve(state: TrainState) -> tuple[Metrics, ...]:
    return tuple(metrics.asdict() for metrics in state.history)


def _prepare(device: torch.device, threads: int) -> None:
    if device.type == "cpu":
        torch.set_num_threads(threads)
    else:
        torch.cuda.init()  # before, there is nothing to reset
        torch.cuda.reset_peak_memory_stats(device)


def _peak_memory_gib(device: torch.device) -> float:
    """Most GPU memory that tensors have taken since the job began, in GiB."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


def _result(trained: TrainState, job: TrainingJob) -> TrainingResult:
    """What a job has come to, once it is exported."""
    return TrainingResult(
        curve=_curve(trained),
        precision=trained.plan.precision,
        attention=trained.plan.attention.training if job.model.has_attention else "none",
        device=trained.device.type,
        test=export(trained, job.export) if job.export is not None and trained.ranks.leads else None,
    )


def export(trained: TrainState, folder: RunPath) -> Metrics:
    """Save the weights and, in the one look at the test set, its logits. Returns the test metrics."""
    model, dataset = trained.evaluated_model, trained.dataset
    save_model(model, folder, dataset=dataset, train_config=trained.config)
    save_logits(model, folder, "val", dataset=dataset, device=trained.device)
    test = save_logits(model, folder, "test", dataset=dataset, device=trained.device)
    return {"test_accuracy": test.accuracy, "test_loss": test.loss}
